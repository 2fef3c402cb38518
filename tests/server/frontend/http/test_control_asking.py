"""What the control plane is asked for in a query, in `If-Match` and in a body; each wrong one by its name."""

from collections.abc import Callable

import pytest

from adamix.errors import InvalidRequest
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_server.frontend.http.control.asking import UPLOAD_QUERY, Query, etag_of, to_header, to_traffic


def refused(ask: Callable[[], object]) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        ask()
    return caught.value.reason, caught.value.field


def upload(*pairs: tuple[str, str]) -> pb.RegisterAdapterHeader:
    return to_header("t", Query(pairs, UPLOAD_QUERY))


def test_an_upload_says_in_its_query_what_its_header_says() -> None:
    assert upload() == pb.RegisterAdapterHeader(task="t")
    assert not upload().HasField("make_live")
    pairs = [("make_live", "false"), ("validate_only", "true"), ("expected_digest", "ab"), ("request_id", "7")]
    assert upload(*pairs, ("file", "a/b.safetensors")) == pb.RegisterAdapterHeader(
        task="t", make_live=False, validate_only=True, expected_digest="ab", request_id="7", file="a/b.safetensors"
    )


@pytest.mark.parametrize("value", ["", "1", "yes", "True", "TRUE", "true "])
def test_a_flag_is_true_or_false(value: str) -> None:
    assert refused(lambda: upload(("make_live", value))) == ("PARAMETER_INVALID", "make_live")


def test_a_parameter_that_is_not_known_or_is_there_twice() -> None:
    assert refused(lambda: upload(("live", "true"))) == ("PARAMETER_UNKNOWN", "live")
    assert refused(lambda: upload(("\x1b[2J\n", ""))) == ("PARAMETER_UNKNOWN", "\\x1b[2J\\n")
    assert refused(lambda: upload(("file", "a"), ("file", "a"))) == ("PARAMETER_INVALID", "file")


@pytest.mark.parametrize("value", ["", "-", "1.0", "0x1", "²", "99999999999", "9" * 5000, "2147483648", " 1"])
def test_what_is_no_size_of_a_page(value: str) -> None:
    query = Query([("page_size", value)], frozenset({"page_size"}))
    assert refused(lambda: query.count("page_size")) == ("PARAMETER_INVALID", "page_size")


def test_sizes_of_pages() -> None:
    known = frozenset({"page_size"})
    sizes = [Query([("page_size", value)], known).count("page_size") for value in ("0", "7", "-1", "2147483647")]
    assert sizes == [0, 7, -1, 2147483647]
    assert Query([], known).count("page_size") == 0


@pytest.mark.parametrize(("value", "etag"), [('"7-a"', "7-a"), ("7-a", "7-a"), ("*", ""), (' "x" ', "x")])
def test_an_etag(value: str, etag: str) -> None:
    assert etag_of({"if-match": value}) == etag
    assert etag_of({}) == ""


@pytest.mark.parametrize("value", ["", '""', '"', 'W/"a"', "W/a", '"a", "b"', "a,b", '"a"b"'])
def test_what_is_no_etag(value: str) -> None:
    assert refused(lambda: etag_of({"if-match": value})) == ("ETAG_INVALID", "If-Match")


def test_traffic() -> None:
    body = b'{"traffic": [{"digest": "a", "weight": 9}, {"digest": "b", "weight": 1}]}'
    shares = [pb.Traffic(digest="a", weight=9), pb.Traffic(digest="b", weight=1)]
    assert to_traffic("t", body, "e") == pb.SetTrafficRequest(task="t", traffic=shares, etag="e")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"[]", None),
        (b"{}", None),
        (b'{"traffic": [], "etag": "x"}', None),
        (b'{"traffic": [{"digest": "a"}]}', "traffic[0]"),
        (b'{"traffic": [{"digest": "a", "weight": 0.5}]}', "traffic[0].weight"),
        (b'{"traffic": [{"digest": "a", "weight": 2147483648}]}', "traffic[0].weight"),
        (b'{"traffic": [{"digest": "a", "weight": NaN}]}', None),
        (b'{"traffic": [{"digest": 1, "weight": 1}]}', "traffic[0].digest"),
    ],
)
def test_what_is_no_traffic(body: bytes, field: str | None) -> None:
    assert refused(lambda: to_traffic("t", body, "")) == ("MALFORMED_BODY", field)
