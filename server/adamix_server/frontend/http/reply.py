"""What a route answers, if it answers at once. Knows nothing of what it says."""

from dataclasses import dataclass

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer.

    Attributes:
        body: all of it; empty for none.
        headers: beside `content-type` and `content-length`, with names in small letters.
    """

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
