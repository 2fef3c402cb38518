"""What a request of the control plane asks for besides its path: in its query, in `If-Match`, in its body. Pure."""

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from adamix.errors import InvalidRequest
from adamix_protos.v1 import adapters_pb2
from adamix_server.frontend.http.json_bodies import Decoder

_INT32_MAX = 2**31 - 1


class _Share(msgspec.Struct, forbid_unknown_fields=True):
    digest: str
    weight: Annotated[int, msgspec.Meta(ge=-_INT32_MAX, le=_INT32_MAX)]


class _Traffic(msgspec.Struct, forbid_unknown_fields=True):
    traffic: list[_Share]


_TRAFFIC = Decoder(_Traffic)


class Query:
    """The parameters of one query, each given once.

    Args:
        pairs: as they came, decoded.
        known: the names that the route takes.

    Raises:
        InvalidRequest: another name (`PARAMETER_UNKNOWN`), or one twice.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], known: frozenset[str]) -> None:
        self._values: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                shown = ascii(name[:64])[1:-1]
                takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
                raise InvalidRequest(
                    f"this route has no parameter {shown}; {takes}", reason="PARAMETER_UNKNOWN", field=shown
                )
            if name in self._values:
                raise _invalid(name, "is given twice")
            self._values[name] = value

    def text(self, name: str) -> str:
        return self._values.get(name, "")

    def flag(self, name: str) -> bool | None:
        """None if it was not given. Raises InvalidRequest."""
        value = self._values.get(name)
        if value not in (None, "true", "false"):
            raise _invalid(name, "is true or false")
        return None if value is None else value == "true"

    def count(self, name: str) -> int:
        """0 if it was not given. Raises InvalidRequest."""
        value = self._values.get(name, "0")
        # No more digits than the largest has: Python reads a number of any length.
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10 and abs(int(value)) <= _INT32_MAX):
            raise _invalid(name, f"is a whole number of up to {_INT32_MAX}")
        return int(value)


UPLOAD_QUERY = frozenset({"make_live", "validate_only", "expected_digest", "request_id", "file"})


def to_header(task: str, query: Query) -> adapters_pb2.RegisterAdapterHeader:
    """The first message of an upload. Raises InvalidRequest."""
    return adapters_pb2.RegisterAdapterHeader(
        task=task,
        make_live=query.flag("make_live"),
        validate_only=query.flag("validate_only") or False,
        expected_digest=query.text("expected_digest"),
        request_id=query.text("request_id"),
        file=query.text("file"),
    )


def to_traffic(task: str, body: bytes, etag: str) -> adapters_pb2.SetTrafficRequest:
    """The change that `{"traffic": [{"digest", "weight"}, …]}` asks for. Raises InvalidRequest."""
    shares = [adapters_pb2.Traffic(digest=s.digest, weight=s.weight) for s in _TRAFFIC.decode(body).traffic]
    return adapters_pb2.SetTrafficRequest(task=task, traffic=shares, etag=etag)


def etag_of(headers: Mapping[str, str]) -> str:
    """The etag of `If-Match`; empty without one, and for `*`, which any task matches that is there.

    Raises:
        InvalidRequest: a weak etag, several, or none of an etag's form (`ETAG_INVALID`).
    """
    value = headers.get("if-match", "*").strip()
    if value == "*":
        return ""
    etag = value[1:-1] if len(value) > 2 and value[0] == value[-1] == '"' else value
    if not etag or '"' in etag or "," in etag or etag.startswith("W/"):
        raise InvalidRequest("If-Match is one etag, as it was given, or *", reason="ETAG_INVALID", field="If-Match")
    return etag


def _invalid(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {what}", reason="PARAMETER_INVALID", field=name)
