"""What is written down of a call: cut, printed, and without a secret, whatever somebody wrote where a name belongs."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.access import api_keys
from adamix_server.access.entries import Entry, to_printable

KEY, PARSED = api_keys.make()
SECRET = KEY.rpartition("_")[2]
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl-_"


def test_what_is_short_and_plain_stays() -> None:
    entry = Entry.of(5, tenant="acme", resource="tenants/acme/tasks/t", detail="café")
    assert (entry.time_us, entry.tenant, entry.resource, entry.detail) == (5, "acme", "tenants/acme/tasks/t", "café")
    assert (entry.code, entry.reason) == ("OK", "")


@given(text=st.text(max_size=3000), field=st.sampled_from(Entry.__struct_fields__[1:]))
def test_any_text_is_printable_and_bounded_and_can_be_sent(text: str, field: str) -> None:
    entry = Entry.of(1, **{field: text})
    said = getattr(entry, field)
    assert said.isprintable()
    assert len(said) <= 512
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=Entry) == entry


def test_half_a_pair_of_surrogates_is_no_character() -> None:
    assert to_printable("a\ud800b", 10) == "a?b"


@pytest.mark.parametrize("before", ["", "x" * 500, "é", "Bearer ", "tenants/acme/tasks/"])
@pytest.mark.parametrize(
    "text",
    [KEY, KEY[:40], KEY + "more", KEY.replace("_", "_x", 1), TOKEN, TOKEN[:30]],
    # Each process makes a key of its own.
    ids=["key", "part of a key", "key and more", "key without an id", "token", "part of a token"],
)
def test_no_secret_is_written_down(before: str, text: str) -> None:
    said = Entry.of(1, resource=before + text, detail=f"{before}{text} {text}", principal=text)
    for part in (said.resource, said.detail, said.principal):
        assert SECRET[:6] not in part
        assert "c2lnbmF" not in part
        assert TOKEN.split(".")[1] not in part


def test_the_id_of_a_key_is_public() -> None:
    assert Entry.of(1, principal=f"keys/{PARSED.id}").principal == f"keys/{PARSED.id}"
    assert PARSED.id in Entry.of(1, detail=f"what was sent: {KEY}").detail
