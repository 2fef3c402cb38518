"""`adamix bench quality` from end to end on packaged weights and texts, with trainings of two steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix_bench.cli import bench
from adamix_bench.quality.statistics import claim

QUICK = [
    *("--tasks", "spam", "--rows", "100", "--layers", "1", "--steps", "2", "--learning-rates", "3e-3"),
    *("--tune-on", "spam:30", "--batch-size", "4", "--max-length", "8", "--draws", "3"),
]


def _quality(out: Path, *arguments: object) -> Any:
    return CliRunner().invoke(bench, ["quality", *QUICK, "--out", str(out), *(str(word) for word in arguments)])


@pytest.mark.weights
def test_runs_are_kept_continued_and_reported(tmp_path: Path) -> None:
    first = _quality(tmp_path, "--seeds", 1, "--methods", "merged,single-compute", "--json")
    assert first.exit_code == 0, first.stderr
    lines = (tmp_path / "quality.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["protocol", "trial", "trial", "run", "run"]

    methods = "merged,random,fixed,ensemble,single-compute,head"
    second = _quality(tmp_path, "--seeds", 2, "--methods", methods, "--json")
    assert second.exit_code == 0, second.stderr
    assert (tmp_path / "quality.jsonl").read_text().splitlines()[: len(lines)] == lines, "nothing is measured twice"
    document = json.loads(second.stdout)
    assert document == json.loads((tmp_path / "quality.json").read_text())
    assert len(document["runs"]) == 2 * 6
    assert document["claim"] == claim(document["runs"])
    assert document["claim"]["pairs"] == 2
    assert {len(r["draws"]) for r in document["runs"] if r["method"] == "random"} == {3}
    assert {len(r["draws"]) for r in document["runs"] if r["method"] == "fixed"} == {4}
    assert all(0 <= r["value"] <= 1 and r["metric"] == "accuracy" for r in document["runs"])
    assert (tmp_path / "quality-routes.png").stat().st_size > 1_000
    assert "AdaMix" in (tmp_path / "quality.md").read_text()

    other = _quality(tmp_path, "--seeds", 1, "--batch-size", 8)
    assert other.exit_code == 2
    assert "begun with batch_size 4, not 8" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "many"], "--rows: 'many' is not a number"),
        (["--tune-on", "spam"], "--tune-on: '' is not a number"),
        (["--tune-on", "nowhere:5"], "nowhere"),
        (["--methods", "merged,best"], "best"),
        (["--layers", "0"], "layers must be positive"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = _quality(tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.weights
def test_more_layers_than_the_backbone_has(tmp_path: Path) -> None:
    result = _quality(tmp_path, "--layers", "7")
    assert result.exit_code == 2
    assert "minilm has 6 layers" in result.stderr
