"""`adamix bench training` from end to end, on a backbone that says nothing about speed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adamix.errors import Cancelled
from adamix_bench.cli import bench
from adamix_bench.training import run
from adamix_bench.training.ways import MIXTURE, PEER, ways

SMALL = ("--backbone", "random:tiny", "--batch-size", "2", "--max-length", "6", "--steps", "1", "--rounds", "1")


def invoke(*arguments: str):
    return CliRunner().invoke(bench, ["training", *arguments, "--threads", "1", "--device", "cpu"])


def test_a_run_writes_one_document_and_a_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    some = (MIXTURE, PEER, "mixture, routes per row", "head alone")
    monkeypatch.setattr(run, "ways", lambda settings: {name: ways(settings)[name] for name in some})
    done = invoke(*SMALL, "--json", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "training.json").read_text("utf-8"))
    assert document["format"] == "adamix-bench-training/1"
    assert document["complete"] is True
    assert [goal["name"] for goal in document["goals"]] == ["step", "step.cpu", "activations"]
    mixture, peer = document["ways"][MIXTURE], document["ways"][PEER]
    ratio = mixture["step_s"]["median"] / peer["step_s"]["median"]
    assert document["goals"][0]["measured"]["values"] == pytest.approx([ratio])
    assert peer["over_peer"]["values"] == [1.0]
    assert (mixture["experts"], peer["experts"], mixture["passes"], peer["passes"]) == (4, 1, 2, 2)
    assert mixture["memory"]["activations_bytes"] > 0
    assert document["facts"]["tokens_a_pass"] == 12
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_leaves_what_had_been_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise Cancelled("stopped after step 1 of 3; continue with --resume")

    monkeypatch.setattr(run, "measure", stop)
    done = invoke(*SMALL, "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "interrupted" in done.stderr
    assert json.loads((tmp_path / "training.json").read_text("utf-8"))["complete"] is False
    assert not (tmp_path / "training.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--experts", "1"), "experts must be in 2..64"),
        (("--method", "prefix"), "kind must be one of"),
        (("--backbone", "random:huge"), "there is no backbone 'random:huge'"),
        (("--max-length", "500", "--backbone", "random:tiny"), "over the backbone's 128 positions"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_one_line(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = invoke(*flags, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""
