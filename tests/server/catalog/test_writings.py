"""How a version is asked for text: read from its manifest, as one object for all that are asked alike."""

import gc
from typing import Any

from adamix.files.manifest import HeadSpec
from adamix.files.tensors import canonical_json
from adamix_server.catalog import heads
from adamix_server.catalog.heads import read_served
from adamix_server.catalog.rows import Writing
from adamix_testing.adapters import WRITER
from adamix_testing.manifests import THREE_CLASSES, make_manifest, make_spec


def writing(head: HeadSpec = WRITER, **said: Any) -> Writing | None:
    return read_served(canonical_json(make_manifest(make_spec(), head, **said).to_json()))[2]


def test_what_the_manifest_says() -> None:
    assert writing() == Writing("source", None), "of a file of before there were others"
    for form in ("source", "text", "chat"):
        assert writing(prompt=form) == Writing(form, None)
    assert writing(prompt="text", chat_template="{{ x }}") == Writing("text", "{{ x }}")
    assert writing(prompt="text", chat_template="") == Writing("text", "")
    assert writing(THREE_CLASSES) is None


def test_equal_ones_are_one_and_go_with_the_last() -> None:
    first, second = (writing(prompt="chat", chat_template="x" * 9999) for _ in range(2))
    assert first is second
    assert writing(prompt="chat") is not first
    before = len(heads._writings)
    del first, second
    gc.collect()
    assert len(heads._writings) == before - 1
