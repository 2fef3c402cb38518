"""The few-shot protocol: K rows, several seeds, mean and deviation; resumed without measuring anything twice."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.cli import app
from adamix.data import TaskData, few_shot, load
from adamix.evaluation import labelled
from adamix.experiments.few_shot import SeedResult, summarise
from adamix.files import adapter_file
from adamix_testing.tasks import csv_lines

FLAGS = ["--max-steps", "3", "--batch-size", "4", "--max-length", "32", "--rank", "4"]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory, colours: TaskData) -> Path:
    directory = tmp_path_factory.mktemp("data") / "colours"
    directory.mkdir()
    header, *rows = csv_lines(colours)
    (directory / "train.csv").write_text("\n".join([header, *rows[:36]]) + "\n")
    (directory / "test.csv").write_text("\n".join([header, *rows[36:]]) + "\n")
    return directory


def _invoke(backbone: Path, data: Path, out: Path, *flags: object) -> Any:
    arguments = ["few-shot", "--backbone", backbone, "--data", data, "--out", out, *FLAGS, *flags]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path, splits: Path) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("few-shot")
    result = _invoke(backbone_directory, splits, out, "--k", 9, "--seeds", 3, "--json")
    assert result.exit_code == 0, result.stderr
    return out, json.loads(result.stdout)


def test_every_seed_has_its_rows_its_adapter_and_its_result(experiment: tuple[Path, Any], splits: Path) -> None:
    out, document = experiment
    assert (document["k"], document["split"], document["rows"]) == (9, "test", 12)
    assert document["head"]["type"] == "classification"
    assert [(s["seed"], s["rows"], s["steps"]) for s in document["seeds"]] == [(0, 9, 3), (1, 9, 3), (2, 9, 3)]
    drawn = set()
    for entry in document["seeds"]:
        directory = out / f"seed-{entry['seed']}"
        adapter = adapter_file.read(directory / "adapter.safetensors")
        assert adapter.digest == entry["digest"]
        # No rows are kept back to choose by: the manifest has no validation metrics.
        assert (adapter.manifest.training.seed, adapter.manifest.training.metrics) == (entry["seed"], {})
        drawn.add(json.loads((directory / "run.json").read_text())["data"]["sha256"])
    assert len(drawn) == 3
    rows = load(str(splits), split="train")
    assert len({few_shot(rows, 9, seed).examples for seed in range(3)}) == 3
    assert json.loads((out / "few-shot.json").read_text()) == document


def test_mean_and_deviation_are_over_the_seeds(experiment: tuple[Path, Any]) -> None:
    _, document = experiment
    for name in ("accuracy", "macro_f1"):
        values = [entry["metrics"][name] for entry in document["seeds"]]
        assert document["mean"][name] == pytest.approx(mean(values))
        assert document["std"][name] == pytest.approx(stdev(values))


def test_it_goes_on_where_it_was_and_measures_nothing_twice(
    experiment: tuple[Path, Any], backbone_directory: Path, splits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = experiment
    (out / "seed-1" / "result.json").write_text("{")  # damaged: made anew
    measured = []
    original = labelled.evaluate

    def evaluate(adapter: Any, *arguments: Any, **options: Any) -> Any:
        measured.append(adapter.manifest.training.seed)
        return original(adapter, *arguments, **options)

    monkeypatch.setattr(labelled, "evaluate", evaluate)
    result = _invoke(backbone_directory, splits, out, "--k", 9, "--seeds", 4, "--json")
    assert result.exit_code == 0, result.stderr
    assert measured == [1, 3]
    after = json.loads(result.stdout)

    def of(document: Any) -> Any:
        return [(s["seed"], s["metrics"], s["digest"]) for s in document["seeds"]]

    assert of(after)[:3] == of(before)
    other = _invoke(backbone_directory, splits, out, "--k", 9, "--seeds", 3, "--lr", 0.5)
    assert other.exit_code == 2
    assert "seed-0 was begun with other settings (train.learning_rate was " in other.stderr
    assert "or another directory" in other.stderr


def test_the_table_names_every_seed(experiment: tuple[Path, Any], backbone_directory: Path, splits: Path) -> None:
    out, _ = experiment
    shown = _invoke(backbone_directory, splits, out, "--k", 9, "--seeds", 2).stdout
    for name in ("seed 0", "seed 1", "mean", "std", "accuracy"):
        assert name in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", 3], "--seed is not for few-shot"),
        (["--few-shot=10"], "--few-shot is not for few-shot"),
        (["--validate"], "--validate is not for few-shot"),
        (["--split", "train"], "--split train holds the rows that were trained on"),
        (["--activation", "sine"], "activation must be one of"),
        (["--no-such-flag"], "error: No such option: --no-such-flag"),
        (["surplus"], "error: Got unexpected extra argument"),
    ],
)
def test_what_the_protocol_decides_is_not_given(
    backbone_directory: Path, splits: Path, tmp_path: Path, flags: list[object], message: str
) -> None:
    result = _invoke(backbone_directory, splits, tmp_path / "out", *flags)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "out").exists()


def test_one_seed_has_no_deviation() -> None:
    one = SeedResult(seed=0, digest="", held_out="", rows=4, metrics={"accuracy": 0.5, "f1": 0.25})
    two = SeedResult(seed=1, digest="", held_out="", rows=4, metrics={"accuracy": 1.0})
    assert summarise([one]).std == {"accuracy": None, "f1": None}
    # Only what every seed has: F1 is undefined where a seed predicts a third class.
    assert summarise([one, two]).mean == {"accuracy": 0.75}
    assert summarise([one, two]).std == {"accuracy": pytest.approx(0.5 / 2**0.5)}
