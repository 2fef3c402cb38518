"""Verbs about one task, as a person types them: digests by their beginnings, nearest names, and hostile words."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from typer.testing import CliRunner

from adamix.errors import InvalidConfig, NotFound
from adamix.files.manifest import HeadSpec
from adamix_client import Client, TaskChange
from adamix_server.cli import delete as deleting
from adamix_server.cli import task_call
from adamix_server.cli.main import app
from adamix_server.cli.printing import safe
from adamix_server.cli.traffic import parse_shares
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.command import Adamix


async def test_traffic_by_the_beginnings_of_digests(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    first, second = (seed("support", make_adapter(seed=number)) for number in (1, 2))
    shared = await adamix.document("traffic", "support", f"{first[:6]}=90", f"{second[:8].upper()}=10")
    assert sorted(shared["task"]["traffic"]) == sorted([[first, 90], [second, 10]])
    assert (await adamix.document("traffic", "support"))["task"]["traffic"] == shared["task"]["traffic"]
    alone = await adamix.document("traffic", "support", f"sha256:{second[:7]}")
    assert alone["task"]["traffic"] == [[second, 1]]
    back = await adamix.document("rollback", "support")
    assert back["task"]["traffic"] == shared["task"]["traffic"]


async def test_a_version_that_is_not_there_is_answered_with_those_that_are(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix
) -> None:
    digest = seed("support", make_adapter(seed=1))
    missing = "0" * 6 if not digest.startswith("000000") else "1" * 6
    for command in (("traffic", "support", f"{missing}=1"), ("pin", f"support@{missing}")):
        assert f"it has {digest[:16]}" in (await adamix(*command, code=1)).stderr
    assert "at least 6 digits" in (await adamix("unpin", "support@abc", code=2)).stderr
    assert "is no digest" in (await adamix("load", "support@../../x", code=2)).stderr


def test_a_beginning_of_several_is_answered_with_them() -> None:
    several = ["abcdef" + "0" * 58, "abcdef" + "1" * 58, "f" * 64]
    with pytest.raises(InvalidConfig, match="begins several versions of t: abcdef0000000000, abcdef1111111111"):
        task_call.match("abcdef", several, "t")
    assert task_call.match("abcdef1", several, "t") == several[1]
    with pytest.raises(NotFound, match="it has none"):
        task_call.match("abcdef", [], "t")


async def test_texts_are_asked_of_a_version_by_its_beginning(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix
) -> None:
    first, second = (seed("support", make_adapter(seed=number)) for number in (1, 2))
    (answer,) = (await adamix.document("predict", "support", "w1", "--version", first[:6]))["predictions"]
    assert answer["version"] == first
    assert (
        "no version of support"
        in (await adamix("predict", "support", "w1", "--version", _other(first, second), code=1)).stderr
    )
    assert "did you mean support?" in (await adamix("predict", "suport", "w1", code=1)).stderr


def _other(*digests: str) -> str:
    """What begins none of these."""
    return next(text for text in ("0" * 6, "1" * 6, "2" * 6) if not any(d.startswith(text) for d in digests))


async def test_an_unknown_task_is_answered_with_the_nearest(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix
) -> None:
    seed("support", make_adapter(seed=1))
    for command in (("show", "suport"), ("versions", "suport"), ("rollback", "suport"), ("delete", "suport", "--yes")):
        said = " ".join((await adamix(*command, code=1)).stderr.split())
        assert said == "error: there is no task 'suport': did you mean support?"
    assert "`adamix tasks` lists" in (await adamix("pin", "zzz", code=1)).stderr


async def test_a_task_and_a_version_are_shown(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    digest = seed("support", make_adapter(seed=1))
    shown = await adamix.document("show", "support")
    assert shown["task"]["name"] == "tenants/default/tasks/support"
    assert [version["digest"] for version in shown["versions"]] == [digest]
    assert "no, maybe, yes" in (await adamix("show", "support")).stdout
    version = await adamix.document("show", f"support@{digest[:6]}")
    assert version["version"]["manifest"]["head"]["num_labels"] == 3
    assert digest in (await adamix("show", f"support@{digest[:6]}")).stdout
    assert [task["name"] for task in (await adamix.document("tasks"))["tasks"]] == [shown["task"]["name"]]


async def test_labels_do_nothing_to_a_terminal(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    labels = {"0": "\x1b[2J\x1b]0;owned\x07", "1": "[red]markup[/red]", "2": "\u202etxt.exe"}
    seed("evil", make_adapter(HeadSpec(type="classification", pooling="mean", num_labels=3, id2label=labels)))
    for command in (("tasks",), ("show", "evil")):
        said = (await adamix(*command)).stdout
        assert "\x1b" not in said
        assert "\u202e" not in said
        assert "\\x1b[2J" in said
        assert "[red]markup[/red]" in said


def test_what_is_shown_is_cut_and_printable() -> None:
    assert safe("a" * 100, 10) == "aaaaaaaaa…"
    assert safe("tab\tnul\0 \u200b") == "tab\\tnul\\x00 \\u200b"


async def test_pins_and_residency(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    first, second = (seed("support", make_adapter(seed=number)) for number in (1, 2))
    assert (await adamix.document("pin", f"support@{first[:6]}"))["version"]["pinned"] is True
    assert (await adamix.document("unpin", f"support@{first[:6]}"))["version"]["pinned"] is False
    # Without a digest the one that is live.
    loaded = await adamix.document("load", "support")
    assert (loaded["version"]["digest"], loaded["version"]["residency"]) == (second, "DEVICE")
    assert (await adamix.document("unload", "support"))["version"]["residency"] == "STORE"
    await adamix.document("traffic", "support", f"{first}=1", f"{second}=1")
    assert "say TASK@DIGEST" in (await adamix("pin", "support", code=2)).stderr


async def test_a_version_and_a_task_are_deleted(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    first, second = (seed("support", make_adapter(seed=number)) for number in (1, 2))
    assert "say --yes" in (await adamix("delete", "support", code=2)).stderr
    assert (await adamix.document("delete", f"support@{first[:6]}", "--yes"))["deleted"] == {
        "task": "support",
        "version": first,
    }
    assert "live" in (await adamix("delete", f"support@{second[:6]}", "--yes", code=1)).stderr
    await adamix("delete", "support", "--yes")
    assert (await adamix.document("tasks"))["tasks"] == []


async def test_on_a_terminal_one_is_asked_before_anything_is_deleted(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed("support", make_adapter(seed=1))

    class Terminal:
        class stdin:
            @staticmethod
            def isatty() -> bool:
                return True

    monkeypatch.setattr(deleting, "sys", Terminal)
    refused = await adamix("delete", "support", code=1, stdin="n\n")
    assert "Delete support and all its versions?" in refused.stderr
    assert len((await adamix.document("tasks"))["tasks"]) == 1
    await adamix("delete", "support", stdin="y\n")
    assert (await adamix.document("tasks"))["tasks"] == []


@pytest.mark.parametrize("wrong", ["abcdef=0", "abcdef=x", "abcdef=-1", "abcdef=1000001", "abcdef=9999999999", "a=²"])
def test_a_weight_that_is_none(wrong: str) -> None:
    with pytest.raises(InvalidConfig):
        parse_shares([wrong])


def test_shares_are_read() -> None:
    assert parse_shares(["abcdef=7", "123456=1000000"]) == [("abcdef", 7), ("123456", 1_000_000)]
    assert parse_shares(["abcdef"]) == [("abcdef", 1)]
    with pytest.raises(InvalidConfig, match="is not DIGEST=WEIGHT"):
        parse_shares(["abcdef", "123456"])
    with pytest.raises(InvalidConfig, match="at most 16"):
        parse_shares(["abcdef=1"] * 17)


async def test_changes_are_followed(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    """Until Ctrl-C, which is played: the watch ends with it, and the command well."""
    seed("support", make_adapter(seed=1))
    harness = await adamix.harness()
    words = ["tasks", "--watch", "--json", "--server", harness.address]
    follow = Client.watch

    def until_deleted(client: Client) -> Iterator[TaskChange]:
        for change in follow(client):
            yield change
            if change.task is None:
                raise KeyboardInterrupt
            with Client(harness.address) as other:
                other.delete_task("support")

    with patch.object(Client, "watch", until_deleted):
        result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["name"] for line in lines] == ["tenants/default/tasks/support"] * 2
    assert lines[1]["task"] is None


async def test_embeddings(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix, tmp_path: Path) -> None:
    head = HeadSpec(type="embedding", pooling="mean")
    digest = seed("space", make_adapter(head))
    (await adamix.harness()).engine.widths[digest] = 4
    found = await adamix.document("embed", "space", "w1", "w2 w3")
    assert (found["version"], found["texts"], found["dim"]) == (digest, 2, 4)
    assert found["embeddings"][0] != found["embeddings"][1]
    lines = (await adamix("embed", "space", "-", stdin="w1\nw2 w3\n")).stdout.splitlines()
    assert [[float(number) for number in line.split()] for line in lines] == found["embeddings"]
    out = tmp_path / "found.npy"
    await adamix("embed", "space", "-", "--out", out, stdin="\n".join(f"w{1 + i % 50}" for i in range(70)))
    assert np.load(out).shape == (70, 4)
    assert np.load(out).dtype == np.float32


@pytest.mark.parametrize(
    ("stdin", "words"),
    [(b"", "stdin is empty"), (b"w1\n\nw2", "text 2 is empty"), (b"\xff", "not UTF-8"), (b"x" * 65537, "over 64 KiB")],
)
async def test_texts_that_are_none(adamix: Adamix, stdin: bytes, words: str) -> None:
    assert words in (await adamix("embed", "space", "-", stdin=stdin, code=1)).stderr


async def test_a_task_without_embeddings_and_a_bad_name(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    seed("support", make_adapter(seed=1))
    assert "gives no embeddings" in (await adamix("embed", "support", "w1", code=1)).stderr
    assert "must end in .npy" in (await adamix("embed", "support", "w1", "--out", "x.csv", code=2)).stderr
    assert "no directory none" in (await adamix("embed", "support", "w1", "--out", "none/x.npy", code=2)).stderr


def test_commands_that_talk_to_a_server_load_no_torch() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from adamix_server.cli.main import app\n"
        "for words in (['show', 't'], ['apply', '-f', '-'], ['top', '--once'], ['embed', 't', 'a'], ['health']):\n"
        "    CliRunner().invoke(app, [*words, '--server', '127.0.0.1:1'], input='tasks: {}')\n"
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
