"""Bodies of JSON, as far as every route reads them alike."""

import json
import string
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import InvalidRequest
from adamix_server.frontend.http.bodies import decode_json
from adamix_server.limits.http import MAX_BODY_CONTAINERS

ANY = msgspec.json.Decoder()
NAMES = st.text(string.printable + "é\N{GRINNING FACE}", max_size=4)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
)


def refused(raw: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode_json(raw, ANY)
    assert caught.value.reason == "MALFORMED_MESSAGE"
    return caught.value.message


@settings(max_examples=40)
@given(DOCUMENTS, st.booleans())
def test_whatever_names_each_thing_once_is_read(document: Any, is_ascii: bool) -> None:
    assert decode_json(json.dumps(document, ensure_ascii=is_ascii).encode(), ANY) == document


@settings(max_examples=40)
@given(DOCUMENTS, NAMES)
def test_a_name_twice_is_refused_wherever_it_is(document: Any, name: str) -> None:
    plain, escaped = json.dumps(name), "".join(f"\\u{ord(each):04x}" for each in name if ord(each) < 0x10000)
    within = json.dumps(document)
    assert "twice" in refused(f'[{within},{{{plain}:{within},"other":0,{plain} :1}}]'.encode())
    if all(ord(each) < 0x10000 for each in name):
        assert "twice" in refused(f'{{"within":{{{plain}:0,"{escaped}":{within}}}}}'.encode())


def test_arrays_and_objects() -> None:
    # Those in texts are none.
    text = '"' + '[{\\"' * MAX_BODY_CONTAINERS + '\\\\"'
    most = f"[{text}," + "[]," * (MAX_BODY_CONTAINERS - 2) + "{}]"
    assert len(decode_json(most.encode(), ANY)) == MAX_BODY_CONTAINERS
    assert f"{MAX_BODY_CONTAINERS:,}" in refused(most.replace("{}]", "{},[]]").encode())


@pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf{}", b"NaN", b"[1e]", b'"\n"', b'"\\ud800"', b'"\xff"', b"{} {}"])
def test_what_is_no_json(raw: bytes) -> None:
    assert refused(raw) == "the body is not valid JSON in UTF-8"


def test_numbers_of_any_length() -> None:
    # Python's own parser takes 4,300 figures at most, and raises another error.
    assert decode_json(b"[%s]" % (b"9" * 300), ANY) == [10**300 - 1]
    with pytest.raises(InvalidRequest) as caught:
        decode_json(b"[%s]" % (b"9" * 5_000), ANY)
    assert caught.value.reason == "FIELD_INVALID"
    assert decode_json(b'{"a": %s}' % (b"9" * 5_000), msgspec.json.Decoder(dict[str, msgspec.Raw]))
