"""`adamix bench quality` from end to end on packaged weights and texts, with trainings of two steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix import data
from adamix.errors import InvalidConfig
from adamix_bench.cli import bench
from adamix_bench.quality.cells import Laboratory
from adamix_bench.quality.settings import QualitySettings
from adamix_bench.quality.statistics import claim

QUICK = [
    *("--tasks", "trec", "--rows", "100", "--layers", "1", "--steps", "2", "--learning-rates", "3e-3"),
    *("--tune-on", "trec:30", "--batch-size", "4", "--max-length", "8", "--draws", "3"),
]


def _quality(out: Path, *arguments: object) -> Any:
    return CliRunner().invoke(bench, ["quality", *QUICK, "--out", str(out), *(str(word) for word in arguments)])


@pytest.fixture
def short_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 120 rows of every split: what is tested is not how well anything answers."""
    load = data.load

    def load_few(name: str, **settings: Any) -> Any:
        rows = load(name, **settings)
        return replace(rows, examples=rows.examples[:120])

    monkeypatch.setattr(data, "load", load_few)


@pytest.mark.weights
@pytest.mark.usefixtures("short_corpora")
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
        (["--precision", "fp8"], "precision must be one of fp32, bf16"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = _quality(tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.weights
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "7"], "minilm has 6 layers"),
        (["--rows", "100,99999"], "few-shot asks for 99999 rows"),
        (["--tune-on", "trec:1"], "few-shot needs a row per class"),
        (["--max-length", "513"], "over the backbone's 512 positions"),
    ],
)
def test_what_some_cell_could_not_do_is_refused_before_the_first(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """And leaves no file behind that was begun with settings nobody can run."""
    result = _quality(tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.weights
def test_mixtures_trained_otherwise_are_not_taken_for_ours(tmp_path: Path) -> None:
    """Two reports may share trained mixtures; their names do not tell how many rows a batch had."""
    settings = QualitySettings(layers=1, tasks=("trec",), tuning_cells=(("trec", 30),))
    Laboratory(settings, tmp_path, "cpu").begin()
    Laboratory(replace(settings, draws=4, learning_rates=(0.1,)), tmp_path, "cpu").begin()
    with pytest.raises(InvalidConfig, match="begun with batch_size 8, not 16: name another --work"):
        Laboratory(replace(settings, batch_size=16), tmp_path, "cpu").begin()
