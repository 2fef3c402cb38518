"""Bodies of JSON: what HTTP asks of them, and what they say as msgspec structs.

Stricter than a browser's parser, and as strict as protobuf's: UTF-8 without a mark before it, one value, no NaN or
Infinity, no name twice in one object, and no name that the struct does not have. A body that comes without
`content-type: application/json` is refused: pages of other sites can make a browser send any other.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from adamix.errors import InvalidRequest
from adamix_client.status import clip
from adamix_server.frontend.http.errors import content_type_unsupported
from adamix_server.frontend.http.reply import JSON
from adamix_server.frontend.http.request import Request
from adamix_server.limits.http import MAX_BODY_BYTES

T = TypeVar("T")

_MAX_SAID_BYTES = 256
# Every string of a document, and the colon after it where it is a name.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"([ \t\r\n]*:)?')
_AT = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*?)`(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


def check_json(request: Request) -> None:
    """Raises InvalidRequest (`CONTENT_TYPE_UNSUPPORTED`) unless the body is said to be JSON in UTF-8."""
    said = (request.header("content-type") or "").lower()
    kind, _, rest = said.partition(";")
    charset = rest.strip().removeprefix("charset=").strip('"')
    if kind.strip() != JSON or (rest and charset != "utf-8"):
        raise content_type_unsupported(JSON)


async def read_json(
    request: Request,
    decoder: "msgspec.json.Decoder[T]",
    *,
    most: int = MAX_BODY_BYTES,
    num_names: Callable[[T], int] | None = None,
) -> T:
    """What the body says. To be called while a call reads, so that who sends it has been judged.

    Args:
        decoder: of a struct that forbids unknown fields, or of any type.
        num_names: of names in all objects of what was decoded, where that can be told more cheaply than by reading the
            body once more; fields that were not given are UNSET.

    Raises:
        Overloaded: it is over `most` bytes (`BODY_TOO_LARGE`).
        InvalidRequest: it is not JSON (`MALFORMED_MESSAGE`, `CONTENT_TYPE_UNSUPPORTED`), has a name twice
            (`MALFORMED_MESSAGE`) or one that there is not (`UNKNOWN_FIELD`), or a value of another type
            (`FIELD_INVALID`); the field is named where that is known.
    """
    check_json(request)
    return decode_json(await request.body(most), decoder, num_names)


def decode_json(raw: bytes, decoder: "msgspec.json.Decoder[T]", num_names: Callable[[T], int] | None = None) -> T:
    """As `read_json`, of bytes that are there."""
    try:
        found = decoder.decode(raw)
        counted = _num_names(msgspec.json.decode(raw)) if num_names is None else num_names(found)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", reason="MALFORMED_MESSAGE") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("the body is not valid JSON in UTF-8", reason="MALFORMED_MESSAGE") from None
    if sum(map(bool, _STRING.findall(raw))) != counted:
        raise InvalidRequest("an object of the body has one name twice", reason="MALFORMED_MESSAGE")
    return found


def _num_names(value: Any) -> int:
    """How many names all objects of a document have, as far as a parser has told them apart."""
    count, left = 0, [value]
    while left:
        match left.pop():
            case dict() as found:
                count += len(found)
                left += found.values()
            case list() as found:
                left += found
    return count


def _invalid(said: str) -> InvalidRequest:
    if (unknown := _UNKNOWN.match(said)) is not None:
        name, path = clip(unknown["name"], 64), unknown["path"]
        unknown_field = f"{path}.{name}" if path else name
        return InvalidRequest(
            f"{unknown_field} is no field of this request", reason="UNKNOWN_FIELD", field=unknown_field
        )
    at = _AT.search(said)
    field = clip(at["path"], 64) if at is not None and at["path"] else None
    what = _AT.sub("", said)
    message = clip(f"{field}: {what}" if field else what, _MAX_SAID_BYTES)
    return InvalidRequest(message, reason="FIELD_INVALID", field=field)
