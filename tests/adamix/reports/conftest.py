"""One training of hostile labels, and what is reported on it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adamix.cli import app
from adamix.data import TaskData
from adamix.files import disk

HOSTILE = ("<script>alert(1)</script>", "a|b `c` $x^2$ **d**", "\N{RIGHT-TO-LEFT OVERRIDE}evil & co")
FLAGS = ["--max-steps", "20", "--batch-size", "8", "--max-length", "32", "--rank", "4", "--lr", "0.01"]


def labelled_rows(colours: TaskData) -> str:
    """The colours with hostile names, and a text that is a tag."""
    import json

    rows = [{"text": e.text, "label": HOSTILE[int(str(e.label))]} for e in colours.examples]
    rows += [{"text": f"red <img src=x onerror=alert({i})> \x1b[2J noun{i}", "label": HOSTILE[1]} for i in range(12)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def hostile_rows(tmp_path_factory: pytest.TempPathFactory, colours: TaskData) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "hostile.jsonl"
    path.write_text(labelled_rows(colours))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path, hostile_rows: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["train", "--backbone", backbone_directory, "--data", hostile_rows, *FLAGS, "--out", out]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def merged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from adamix.merging.merge import merge

    file = tmp_path_factory.mktemp("merged") / "adapter.safetensors"
    disk.write(file, merge(trained))
    return file
