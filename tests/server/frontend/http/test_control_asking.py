"""What the control plane is asked for in a query, in `If-Match` and in a body; each wrong one by its name."""

from collections.abc import Callable

import pytest

from adamix.errors import InvalidRequest
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_server.frontend.http.control.asking import to_etag, to_header, to_page, to_traffic


def refused(ask: Callable[[], object]) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        ask()
    return caught.value.reason, caught.value.field


def test_an_upload_says_in_its_query_what_its_header_says() -> None:
    assert to_header("t", {}) == pb.RegisterAdapterHeader(task="t")
    assert not to_header("t", {}).HasField("make_live")
    query = {"make_live": "false", "validate_only": "true", "expected_digest": "ab", "request_id": "7", "file": "a/b"}
    assert to_header("t", query) == pb.RegisterAdapterHeader(
        task="t", make_live=False, validate_only=True, expected_digest="ab", request_id="7", file="a/b"
    )


@pytest.mark.parametrize("value", ["", "1", "yes", "True", "TRUE", "true "])
def test_a_flag_is_true_or_false(value: str) -> None:
    assert refused(lambda: to_header("t", {"make_live": value})) == ("QUERY_INVALID", "make_live")


@pytest.mark.parametrize("value", ["", "-", "1.0", "0x1", "²", "99999999999", "9" * 5000, "2147483648", " 1"])
def test_what_is_no_size_of_a_page(value: str) -> None:
    assert refused(lambda: to_page({"page_size": value})) == ("QUERY_INVALID", "page_size")


def test_sizes_of_pages() -> None:
    assert [to_page({"page_size": value})[0] for value in ("0", "7", "-1", "2147483647")] == [0, 7, -1, 2147483647]
    assert to_page({}) == (0, "")
    assert to_page({"page_token": "x"}) == (0, "x")


@pytest.mark.parametrize(("value", "etag"), [('"7-a"', "7-a"), ("7-a", "7-a"), ("*", ""), (' "x" ', "x"), (None, "")])
def test_an_etag(value: str | None, etag: str) -> None:
    assert to_etag(value) == etag


@pytest.mark.parametrize("value", ["", '""', '"', 'W/"a"', "W/a", '"a", "b"', "a,b", '"a"b"'])
def test_what_is_no_etag(value: str) -> None:
    assert refused(lambda: to_etag(value)) == ("ETAG_INVALID", "If-Match")


def test_traffic() -> None:
    body = b'{"traffic": [{"digest": "a", "weight": 9}, {"digest": "b", "weight": 1}]}'
    shares = [pb.Traffic(digest="a", weight=9), pb.Traffic(digest="b", weight=1)]
    assert to_traffic("t", body, "e") == pb.SetTrafficRequest(task="t", traffic=shares, etag="e")


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        (b"", "MALFORMED_MESSAGE", None),
        (b"[]", "FIELD_INVALID", None),
        (b"{}", "FIELD_INVALID", None),
        (b'{"traffic": [], "etag": "x"}', "UNKNOWN_FIELD", "etag"),
        (b'{"traffic": [], "traffic": []}', "MALFORMED_MESSAGE", None),
        (b'{"traffic": [{"digest": "a"}]}', "FIELD_INVALID", "traffic[0]"),
        (b'{"traffic": [{"digest": "a", "weight": 0.5}]}', "FIELD_INVALID", "traffic[0].weight"),
        (b'{"traffic": [{"digest": "a", "weight": 2147483648}]}', "FIELD_INVALID", "traffic[0].weight"),
        (b'{"traffic": [{"digest": "a", "weight": NaN}]}', "MALFORMED_MESSAGE", None),
        (b'{"traffic": [{"digest": 1, "weight": 1}]}', "FIELD_INVALID", "traffic[0].digest"),
    ],
)
def test_what_is_no_traffic(body: bytes, reason: str, field: str | None) -> None:
    assert refused(lambda: to_traffic("t", body, "")) == (reason, field)
