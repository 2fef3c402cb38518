"""YAML of whoever wrote it: what is taken, and that nothing else is, with the line."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import InvalidConfig
from adamix_server.cli.declared import yaml_nodes
from adamix_server.cli.declared.yaml_nodes import Listing, Node, Scalar, Table, parse, read_yaml
from adamix_server.limits.commands import MAX_DECLARATION_BYTES, MAX_DECLARATION_DEPTH


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def parser(request: pytest.FixtureRequest) -> Iterator[None]:
    """The library's parser in C, and the one that there is without it."""
    with patch.object(yaml_nodes, "_LOADER", getattr(yaml, request.param)):
        yield


def values(node: Node) -> object:
    match node:
        case Scalar(text=text):
            return text
        case Listing(items=items):
            return [values(item) for item in items]
        case Table(entries=entries):
            return {key: values(value) for key, value in entries.items()}


@pytest.mark.usefixtures("parser")
def test_texts_lists_and_mappings_are_read_and_nothing_is_guessed() -> None:
    text = "no: on\n1: 0x10\nlist:\n- 'a b'\n- {deep: [1, ~]}\nlong: |\n  two\n  lines\n"
    assert values(parse(text.encode(), "f")) == {
        "no": "on",
        "1": "0x10",
        "list": ["a b", {"deep": ["1", "~"]}],
        "long": "two\nlines\n",
    }
    root = parse(text.encode(), "f")
    assert isinstance(root, Table)
    assert root.lines["list"] == 3
    assert values(parse(b"\xef\xbb\xbfa: b", "f")) == {"a": "b"}


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: 1\nb: 2\na: 3", "f:3: the key 'a' is there already, in line 1"),
        (b"a: &x [1]\nb: *x", "f:2: aliases"),
        (b"a: !!python/object/apply:os.system ['id']", "f:1: tags"),
        (b"a: !!str 1", "f:1: tags"),
        (b"a: 1\n---\nb: 2", "f:2: there is a second document"),
        (b"? [a]\n: b", "f:1: a key must be a text"),
        (b"a: [1, 2", "is not YAML"),
        (b"a: 1\n\tb: 2", "f:2 is not YAML"),
        (b"a: \x00", "characters that may not"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "is empty"),
        (b"# a remark alone\n", "is empty"),
        (b"%YAML 9.9\n---\na: 1", "is not YAML"),
    ],
)
def test_what_is_not_taken_is_said_with_its_line(data: bytes, words: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        parse(data, "f")
    assert words in refused.value.message


def test_a_billion_laughs_are_not_begun() -> None:
    lines = ["a0: &a0 [lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    with pytest.raises(InvalidConfig, match="aliases"):
        parse("\n".join(lines).encode(), "f")


@pytest.mark.usefixtures("parser")
def test_so_many_levels_are_read_and_one_more_is_not() -> None:
    parse(b"[" * MAX_DECLARATION_DEPTH + b"]" * MAX_DECLARATION_DEPTH, "f")
    with pytest.raises(InvalidConfig, match="deeper"):
        parse(b"[" * (MAX_DECLARATION_DEPTH + 1) + b"]" * (MAX_DECLARATION_DEPTH + 1), "f")
    with pytest.raises(InvalidConfig, match="deeper"):
        parse(b"[" * 100_000, "f")


def test_a_file_of_the_most_bytes_is_read_and_one_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "most.yaml"
    path.write_bytes(b"a: 1 #".ljust(MAX_DECLARATION_BYTES, b"."))
    assert values(read_yaml(path)) == {"a": "1"}
    path.write_bytes(b"a: 1 #".ljust(MAX_DECLARATION_BYTES + 1, b"."))
    with pytest.raises(InvalidConfig, match="over 4 MiB"):
        read_yaml(path)
    with pytest.raises(InvalidConfig, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InvalidConfig, match="directory"):
        read_yaml(tmp_path)


@given(st.binary(max_size=60) | st.text(alphabet="ab:-[]{}&*!?|>'\"# \n\t,~%@`\\", max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(InvalidConfig):
        parse(data, "f")
