"""Bodies of requests in JSON: read into a struct, or refused with the field that is wrong. Knows no route."""

import re
from typing import Generic, TypeVar

import msgspec

from adamix.errors import InvalidRequest

T = TypeVar("T")

_AT = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


class Decoder(Generic[T]):
    """Reads bodies of one kind."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, body: bytes, field: str = "") -> T:
        """What a body says.

        Args:
            field: that all of it stands in, for the error.

        Raises:
            InvalidRequest: it is not JSON, or not of this kind (`MALFORMED_BODY`).
        """
        try:
            return self._decoder.decode(body)
        except UnicodeDecodeError:
            text = "the body is not UTF-8"
        except (msgspec.DecodeError, RecursionError) as error:
            text = str(error)
        found = _AT.fullmatch(text)
        message, inner = found.groups() if found else (text, "")
        path = f"{field}{'.' if field and inner and inner[0] != '[' else ''}{inner}"
        raise InvalidRequest(message, reason="MALFORMED_BODY", field=path or None)
