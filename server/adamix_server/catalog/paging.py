"""Pages: how much of a list is answered at once, and where it goes on, in a form clients are not meant to read.

A token holds the sort key of the last row that was sent, not a position: rows added or removed meanwhile neither
repeat nor hide others.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from adamix.errors import InvalidRequest
from adamix_server.catalog.rows import TaskRow
from adamix_server.limits.control import MAX_PAGE_BYTES, MAX_PAGE_SIZE

DEFAULT_PAGE_SIZE = 100

_MAX_TOKEN_CHARS = 1024


def check_page_size(value: int) -> int:
    """0 means the default; more than the maximum means the maximum. Raises InvalidRequest below 0."""
    if value < 0:
        raise InvalidRequest("page_size must not be negative", field="page_size")
    return min(value or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def count_that_fit(sizes: Iterable[int]) -> int:
    """How many of the first rows make a page, by their sizes in bytes; at least one, however large it is."""
    count, left = 0, MAX_PAGE_BYTES
    for size in sizes:
        left -= size
        if left < 0 and count:
            break
        count += 1
    return count


def bytes_of_task(row: TaskRow) -> int:
    """About what a task takes up in an answer: names and times, its traffic, its labels."""
    labels = row.heaviest.head.labels if row.live else ()
    return 256 + 80 * len(row.live) + sum(len(label.encode()) + 4 for label in labels)


def make_token(listing: Sequence[str], key: Sequence[str | int]) -> str:
    """A token for the list named `listing` that goes on after the row with sort key `key`."""
    text = json.dumps([*listing, *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_token(token: str, listing: Sequence[str], *types: type[str] | type[int]) -> list[str | int] | None:
    """The sort key in a token of the same list, its parts of the given types; None for the empty token.

    Raises:
        InvalidRequest: not a token, or one of another list.
    """
    if not token:
        return None
    parts = _decode(token)
    key = parts[len(listing) :] if isinstance(parts, list) and parts[: len(listing)] == list(listing) else None
    if key is None or [type(part) for part in key] != list(types) or not all(map(_is_of_a_row, key)):
        raise InvalidRequest("page_token is not one this list returned; start again without it", field="page_token")
    return key


def _is_of_a_row(part: str | int) -> bool:
    return isinstance(part, str) or 0 <= part < 1 << 63


def _decode(token: str) -> Any:
    """The JSON in a token; None if there is none."""
    if len(token) > _MAX_TOKEN_CHARS:
        return None
    try:
        # Not `json`, which takes half a surrogate pair for a character: no database does.
        return msgspec.json.decode(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        return None
