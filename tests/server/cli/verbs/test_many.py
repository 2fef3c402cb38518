"""`register --all` and `apply`, as a person types them: many calls, what became of each, and the same command again."""

import hashlib
import re
import shlex
import threading
from pathlib import Path

import pytest

from adamix.cli.progress import Shown
from adamix.errors import InvalidConfig, InvalidRequest, Overloaded
from adamix_client import Client
from adamix_server.cli.many import run_many
from adamix_server.cli.register import find_files
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.command import Adamix


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, make_adapter: MakeAdapter) -> Path:
    (tmp_path / "adapters" / "gamma").mkdir(parents=True)
    for number, name in enumerate(("alpha.safetensors", "beta.safetensors", "gamma/adapter.safetensors")):
        (tmp_path / "adapters" / name).write_bytes(make_adapter(seed=number))
    return tmp_path / "adapters"


async def test_a_directory_is_registered_and_gone_on_with(adamix: Adamix, folder: Path) -> None:
    (folder / "delta.safetensors").write_bytes(b"no adapter")
    first = await adamix.document("register", "--all", folder, code=1)
    assert [(one["task"], one["already_exists"]) for one in first["registered"]] == [
        ("alpha", False),
        ("beta", False),
        ("gamma", False),
    ]
    assert [one["version"] for one in first["registered"]][:2] == [
        digest(folder / f"{name}.safetensors") for name in ("alpha", "beta")
    ]
    assert [(one["task"], bool(one["reason"])) for one in first["failed"]] == [("delta", True)]
    (folder / "delta.safetensors").unlink()
    again = await adamix("register", "--all", folder)
    assert again.stdout == "0 registered, 3 were there already, 0 failed\n"
    assert len((await adamix.document("tasks"))["tasks"]) == 3


async def test_files_of_a_manifest_are_validated_alone(adamix: Adamix, folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("tasks:\n  one: adapters/alpha.safetensors\n  two: {file: adapters/beta.safetensors}\n")
    said = await adamix("register", "--all", manifest, "--validate-only")
    assert said.stdout == "2 are valid, 0 were there already, 0 failed\n"
    assert (await adamix.document("tasks"))["tasks"] == []
    manifest.write_text("tasks:\n  one: adapters/none.safetensors\n")
    failed = await adamix("register", "--all", manifest, code=1)
    assert "none.safetensors: there is no such file" in failed.stderr


def test_files_that_are_none_or_too_many(folder: Path, tmp_path: Path) -> None:
    (folder / "gamma.safetensors").write_bytes(b"")
    with pytest.raises(InvalidConfig, match="both for the task gamma"):
        find_files(folder)
    (folder / "gamma.safetensors").rename(folder / "Not A Task.safetensors")
    with pytest.raises(InvalidConfig, match="is no id of a task"):
        find_files(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidConfig, match=r"there is no \*\.safetensors"):
        find_files(tmp_path / "empty")
    (tmp_path / "more.yaml").write_text("tasks: {t: {file: a, pins: [file]}}")
    with pytest.raises(InvalidConfig, match="`adamix apply -f` does the rest"):
        find_files(tmp_path / "more.yaml")


async def test_one_registration_says_what_it_wants(adamix: Adamix, folder: Path) -> None:
    assert "give a TASK and a FILE, or --all" in (await adamix("register", "alpha", code=2)).stderr
    assert "names tasks and files itself" in (await adamix("register", "t", "--all", folder, code=2)).stderr
    assert "there is no such file" in (await adamix("register", "t", folder / "none", code=2)).stderr
    made = await adamix.document("register", "t", folder / "alpha.safetensors")
    assert (made["task"], made["version"]["live"], made["already_exists"]) == ("t", True, False)


DECLARED = """
tasks:
  support:
    versions: {stable: adapters/alpha.safetensors, canary: adapters/beta.safetensors}
    traffic: {stable: 9, canary: 1}
    pins: [stable]
  spam: adapters/gamma/adapter.safetensors
"""


async def test_applied_twice_nothing_differs(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = seed("support", make_adapter(seed=7))
    seed("old", make_adapter(seed=8))
    file = tmp_path / "tasks.yaml"
    file.write_text(DECLARED)
    planned = await adamix.document("apply", "-f", file, "--dry-run")
    assert [step["action"] for step in planned["plan"]] == ["register"] * 3 + ["traffic"] * 2 + ["pin"]
    assert (planned["done"], planned["left"]) == (0, 6)
    assert [task["name"].rsplit("/")[-1] for task in (await adamix.document("tasks"))["tasks"]] == ["old", "support"]

    done = await adamix("apply", "-f", file)
    stable, canary = digest(folder / "alpha.safetensors"), digest(folder / "beta.safetensors")
    assert f"~ traffic        support {stable[:12]} 90.0%, {canary[:12]} 10.0% (was {older[:12]})" in done.stdout
    assert done.stdout.endswith("6 done\n")
    assert (await adamix("apply", "-f", file)).stdout == "nothing differs\n"
    assert (await adamix.document("apply", "-f", file))["plan"] == []
    file.write_text(DECLARED.replace("    pins: [stable]\n", ""))
    with monkeypatch.context() as patched:
        # What is as it should be is one look, however many tasks there are.
        patched.setattr(Client, "versions", None)
        assert (await adamix("apply", "-f", file)).stdout == "nothing differs\n"

    pruned = await adamix.document("apply", "-f", file, "--prune")
    assert [(step["action"], step["task"], step["state"]) for step in pruned["plan"]] == [
        ("delete-version", "support", "done"),
        ("delete-task", "old", "done"),
    ]
    assert (await adamix.document("apply", "-f", file, "--prune"))["plan"] == []
    versions = (await adamix.document("versions", "support"))["versions"]
    assert {version["digest"]: version["pinned"] for version in versions} == {stable: True, canary: False}


async def test_grants_are_declared(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix, folder: Path, tmp_path: Path
) -> None:
    seed("theirs", make_adapter(seed=7), tenant="acme")
    file = tmp_path / "tasks.yaml"
    file.write_text("tasks: {spam: {file: adapters/alpha.safetensors, grants: [acme]}}")
    await adamix("apply", "-f", file)
    assert [grant["tenant"] for grant in (await adamix.document("grants", "list"))["grants"]] == ["acme"]
    assert (await adamix("apply", "-f", file)).stdout == "nothing differs\n"
    file.write_text("tasks: {spam: {file: adapters/alpha.safetensors, grants: []}}")
    assert [step["action"] for step in (await adamix.document("apply", "-f", file))["plan"]] == ["revoke"]


async def test_what_fails_half_way_is_said_and_gone_on_with(
    adamix: Adamix, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(DECLARED)
    traffic = Client.traffic

    def refused(client: Client, task: str, *arguments: object, **named: object) -> object:
        if task == "spam":
            raise Overloaded("nothing \x1b[31mgoes", reason="OVERLOADED")
        return traffic(client, task, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Client, "traffic", refused)
        failed = await adamix.document("apply", "-f", file, code=1)
        assert (failed["done"], failed["failed"], failed["left"]) == (4, 1, 1)
        assert [step["state"] for step in failed["plan"]] == ["done"] * 4 + ["failed", "not begun"]
        assert failed["plan"][4]["reason"] == "OVERLOADED"
        told = await adamix("apply", "-f", file, code=1)
        assert "failed: ~ traffic        spam" in told.stderr
        assert "\x1b" not in told.stderr
        assert "goes on with what is left" in told.stdout
    rest = await adamix.document("apply", "-f", file)
    assert [(step["action"], step["state"]) for step in rest["plan"]] == [("traffic", "done"), ("pin", "done")]


async def test_traffic_that_somebody_else_has_changed_is_not_overwritten(
    adamix: Adamix, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_adapter: MakeAdapter
) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("tasks: {spam: adapters/alpha.safetensors}")
    theirs = make_adapter(seed=77)
    register = Client.register

    def beside(client: Client, task: str, adapter: Path, **named: object) -> object:
        found = register(client, task, adapter, **named)  # type: ignore[arg-type]
        register(client, task, theirs)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Client, "register", beside)
        (_, traffic) = (await adamix.document("apply", "-f", file, code=1))["plan"]
    assert (traffic["state"], traffic["reason"]) == ("failed", "STALE_ETAG")
    live = (await adamix.document("show", "spam"))["task"]["traffic"]
    assert live == [[hashlib.sha256(theirs).hexdigest(), 1]]


async def test_a_file_that_changes_after_it_was_shown_is_refused(
    adamix: Adamix, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_adapter: MakeAdapter
) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("tasks: {spam: adapters/alpha.safetensors}")
    tasks = Client.tasks

    def changed(client: Client) -> object:
        (folder / "alpha.safetensors").write_bytes(make_adapter(seed=99))
        return tasks(client)

    monkeypatch.setattr(Client, "tasks", changed)
    register, traffic = (await adamix.document("apply", "-f", file, code=1))["plan"]
    assert (register["state"], register["reason"], traffic["state"]) == ("failed", "DIGEST_MISMATCH", "not begun")


async def test_the_page_runs_as_it_stands(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (
        (Path(__file__).parents[4] / "docs" / "command-line.md")
        .read_text(encoding="utf-8")
        .partition("### Declared state")[2]
    )
    blocks = dict(re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    (tmp_path / "tasks.yaml").write_text(blocks["yaml"])
    for name, number in (("support-1", 1), ("support-2", 2), ("spam", 3)):
        (folder / f"{name}.safetensors").write_bytes(make_adapter(seed=number))
    seed("theirs", make_adapter(seed=7), tenant="acme")
    monkeypatch.chdir(tmp_path)
    first, *others = [shlex.split(line)[1:] for line in blocks["sh"].splitlines()]
    # Digests are those of the adapters of whoever wrote the page.
    planned = re.sub(r"\b[0-9a-f]{12}\b", "D", (await adamix(*first)).stdout)
    assert planned == re.sub(r"\b[0-9a-f]{12}\b", "D", blocks[""])
    for command in others:
        await adamix(*command)
    assert (await adamix("apply", "-f", "tasks.yaml", "--prune")).stdout == "nothing differs\n"


async def test_nothing_declared_prunes_nothing(adamix: Adamix, tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("tasks: {}")
    assert "would delete all" in (await adamix("apply", "-f", file, "--prune", code=2)).stderr
    assert (await adamix("apply", "-f", "-", stdin="tasks: {}")).stdout == "nothing differs\n"


def test_calls_run_beside_each_other_and_fail_alone() -> None:
    together = threading.Barrier(3, timeout=20)

    def work(number: int) -> int:
        together.wait()
        if number == 1:
            raise InvalidRequest("one")
        return number * 10

    shown = Shown("trying", 3)
    run = run_many([0, 1, 2], work, jobs=3, shown=shown, stop=threading.Event())
    assert [one.value for one in run.ended] == [0, None, 20]
    assert [str(one.error) for one in run.failed] == ["one"]
    assert (run.left, shown.done, shown.note) == ([], 3, "1 failed")


def test_once_it_is_to_stop_what_is_under_way_ends_and_no_more_begins() -> None:
    stop = threading.Event()
    both = threading.Barrier(2, timeout=20)

    def work(number: int) -> int:
        both.wait()
        stop.set()
        return number

    run = run_many([0, 1, 2, 3], work, jobs=2, shown=Shown("trying", 4), stop=stop)
    assert [one.value for one in run.ended] == [0, 1]
    assert run.left == [2, 3]


def test_a_bug_in_a_call_is_not_hidden() -> None:
    def work(number: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_many([0], work, jobs=1, shown=Shown("trying", 1), stop=threading.Event())
