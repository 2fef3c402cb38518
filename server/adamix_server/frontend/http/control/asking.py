"""What a request of the control plane asks for besides its path: in its query, in `If-Match`, in its body. Pure."""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from adamix.errors import InvalidRequest
from adamix_protos.v1 import adapters_pb2
from adamix_server.frontend.http.bodies import decode_json
from adamix_server.limits.http import MAX_BODY_ITEMS

_INT32_MAX = 2**31 - 1

# Parameters of a query -> what each is.
PAGE_QUERY = {"page_size": "rows at most", "page_token": "of the page before"}
UPLOAD_QUERY = {
    "make_live": "true (default) or false: whether it answers from now on",
    "validate_only": "true or false: whether it is only checked",
    "expected_digest": "sha256 of the file in hex; another one is refused",
    "request_id": "makes a retry return the first answer",
    "file": "a path below the server's --adapter-root, in place of a body",
}


class Share(msgspec.Struct, forbid_unknown_fields=True):
    """One version's share of a task's traffic."""

    digest: str
    weight: Annotated[int, msgspec.Meta(ge=-_INT32_MAX, le=_INT32_MAX)]


class Traffic(msgspec.Struct, forbid_unknown_fields=True):
    """What answers a task."""

    traffic: Annotated[list[Share], msgspec.Meta(max_length=MAX_BODY_ITEMS)]


_TRAFFIC = msgspec.json.Decoder(Traffic)


def to_page(query: Mapping[str, str]) -> tuple[int, str]:
    """Size and token of a page; 0 and empty where they are not given. Raises InvalidRequest."""
    size = query.get("page_size", "0")
    # No more digits than the largest has: Python reads a number of any length.
    digits = size.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10 and abs(int(size)) <= _INT32_MAX):
        raise _invalid("page_size", f"is a whole number of up to {_INT32_MAX}")
    return int(size), query.get("page_token", "")


def to_header(task: str, query: Mapping[str, str]) -> adapters_pb2.RegisterAdapterHeader:
    """The first message of an upload. Raises InvalidRequest."""
    header = adapters_pb2.RegisterAdapterHeader(
        task=task,
        validate_only=_flag(query, "validate_only") or False,
        expected_digest=query.get("expected_digest", ""),
        request_id=query.get("request_id", ""),
        file=query.get("file", ""),
    )
    if (make_live := _flag(query, "make_live")) is not None:
        header.make_live = make_live
    return header


def to_traffic(task: str, body: bytes, etag: str) -> adapters_pb2.SetTrafficRequest:
    """The change that `{"traffic": [{"digest", "weight"}, …]}` asks for. Raises InvalidRequest."""
    shares = [adapters_pb2.Traffic(digest=s.digest, weight=s.weight) for s in decode_json(body, _TRAFFIC).traffic]
    return adapters_pb2.SetTrafficRequest(task=task, traffic=shares, etag=etag)


def to_etag(if_match: str | None) -> str:
    """The etag of an `If-Match`; empty without one, and for `*`, which any task matches that is there.

    Raises:
        InvalidRequest: a weak etag, several, or none of an etag's form (`ETAG_INVALID`).
    """
    value = "*" if if_match is None else if_match.strip()
    if value == "*":
        return ""
    etag = value[1:-1] if len(value) > 2 and value[0] == value[-1] == '"' else value
    if not etag or '"' in etag or "," in etag or etag.startswith("W/"):
        raise InvalidRequest("If-Match is one etag, as it was given, or *", reason="ETAG_INVALID", field="If-Match")
    return etag


def _flag(query: Mapping[str, str], name: str) -> bool | None:
    value = query.get(name)
    if value not in (None, "true", "false"):
        raise _invalid(name, "is true or false")
    return None if value is None else value == "true"


def _invalid(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {what}", reason="QUERY_INVALID", field=name)
