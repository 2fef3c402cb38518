"""What a file declares, and what it may not say."""

from pathlib import Path

import pytest

from adamix.errors import InvalidConfig, NotFound
from adamix_server.cli.declared.declaration import DeclaredTask, read_declaration
from adamix_server.cli.declared.plan import ActualTask
from adamix_server.cli.declared.resolving import digests_of, resolve

A, B = "a" * 64, "b" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.safetensors").write_bytes(b"1")
    (tmp_path / "two.safetensors").write_bytes(b"2")
    (tmp_path / "same.safetensors").write_bytes(b"1")
    return tmp_path


def read(folder: Path, text: str) -> list[DeclaredTask]:
    path = folder / "tasks.yaml"
    path.write_text(text)
    return read_declaration(path)


def test_all_that_can_be_declared(folder: Path) -> None:
    tasks = read(
        folder,
        """
tasks:
  spam: one.safetensors
  support:
    versions: {stable: one.safetensors, canary: /abs/two.safetensors}
    traffic: {stable: 95, canary: 5}
    pins: [stable]
    grants: [acme]
  alone: {file: two.safetensors, pins: []}
  kept: {traffic: abcdef12}
  one: {versions: {only: one.safetensors}}
  nothing:
""",
    )
    spam, support, alone, kept, one, nothing = tasks
    assert (spam.versions, spam.traffic) == ({"file": folder / "one.safetensors"}, {"file": 1})
    assert spam.where == f"{folder / 'tasks.yaml'}:3"
    assert support.versions == {"stable": folder / "one.safetensors", "canary": Path("/abs/two.safetensors")}
    assert (support.traffic, support.pins, support.grants) == ({"stable": 95, "canary": 5}, ("stable",), ("acme",))
    assert (alone.traffic, alone.pins, alone.grants) == ({"file": 1}, (), None)
    assert (kept.versions, kept.traffic) == (None, {"abcdef12": 1})
    assert one.traffic == {"only": 1}
    assert (nothing.versions, nothing.traffic, nothing.pins) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: []", ":1: tasks must be a mapping"),
        ("task: {}", "unknown key 'task': did you mean tasks?"),
        ("[]", "the file must be a mapping"),
        ("{}", "no key `tasks`"),
        ("tasks:\n  t: {trafic: a}", ":2: t has an unknown key 'trafic': did you mean traffic?"),
        ("tasks:\n  t: {zzz: a}", "unknown key 'zzz': there are file, versions, traffic, pins, grants"),
        ("tasks:\n  Spam: one", ":2: a task 'Spam' is not a valid id"),
        ("tasks:\n  ../x: one", "is not a valid id"),
        ("tasks:\n  t: {file: a, versions: {x: b}}", "is one version with all traffic"),
        ("tasks:\n  t: {file: a, traffic: x}", "is one version with all traffic"),
        ("tasks:\n  t: {versions: {x: a, y: b}}", "say their `traffic`"),
        ("tasks:\n  t: {versions: {x: a}, traffic: {xx: 1}}", "'xx' is neither"),
        ("tasks:\n  t: {versions: {stable: a}, traffic: stabel}", "did you mean stable?"),
        ("tasks:\n  t: {traffic: {abcdef: 0}}", "not in 1..1,000,000"),
        ("tasks:\n  t: {traffic: {abcdef: 1.5}}", "not a whole number"),
        ("tasks:\n  t: {traffic: {abcdef: .nan}}", "not a whole number"),
        ("tasks:\n  t: {traffic: {}}", "names 1 to 16"),
        ("tasks:\n  t: {traffic: {abc: 1}}", "'abc' is neither"),
        ("tasks:\n  t: {pins: [abcdef, abcdef]}", "names 'abcdef' twice"),
        ("tasks:\n  t: {pins: {a: b}}", "pins must be a list"),
        ("tasks:\n  t: {grants: [[acme]]}", "a list of names"),
        ("tasks:\n  t: {grants: [ACME]}", "is not a valid id"),
        ("tasks:\n  t: {file: [a]}", "the name of a file"),
        ('tasks:\n  t: {file: "a\\0b"}', "the name of a file"),
    ],
)
def test_what_is_no_declaration_is_said_with_its_line(folder: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        read(folder, text)
    assert words in refused.value.message
    assert refused.value.message.startswith(f"{folder / 'tasks.yaml'}:")


def resolved(folder: Path, body: str, actual: ActualTask | None) -> object:
    (task,) = read(folder, f"tasks:\n  t: {body}")
    return resolve(task, actual, digests_of((task.versions or {}).values()))


def test_names_become_digests(folder: Path) -> None:
    (task,) = read(folder, f"tasks:\n  t: {{file: one.safetensors, pins: [file, {A[:6]}]}}")
    (digest,) = (digests := digests_of((task.versions or {}).values())).values()
    wanted = resolve(task, ActualTask(versions=frozenset({A, B})), digests)
    assert (wanted.files, wanted.traffic) == ({digest: folder / "one.safetensors"}, {digest: 1})
    assert wanted.versions == {digest, A}
    assert wanted.pins == {digest, A}


@pytest.mark.parametrize(
    ("body", "actual", "kind", "words"),
    [
        ("{traffic: abcdef}", None, NotFound, "there is no task t, and no file is declared"),
        ("{traffic: abcdef}", ActualTask(versions=frozenset({A})), NotFound, "it has aaaaaaaa"),
        (
            "{traffic: aaaaaa}",
            ActualTask(versions=frozenset({A, "a" * 63 + "b"})),
            InvalidConfig,
            "begins several versions",
        ),
        ("{traffic: {aaaaaa: 1, aaaaaaa: 1}}", ActualTask(versions=frozenset({A})), InvalidConfig, "one version twice"),
        (
            "{versions: {x: one.safetensors, y: same.safetensors}, traffic: x}",
            None,
            InvalidConfig,
            "'x' and 'y' are the same bytes",
        ),
    ],
)
def test_what_cannot_be_found(
    folder: Path, body: str, actual: ActualTask | None, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as refused:
        resolved(folder, body, actual)
    assert words in str(refused.value)
    assert f"{folder / 'tasks.yaml'}:2" in str(refused.value)
