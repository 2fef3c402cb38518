"""`adamix evaluate --routing …` as a user types it: what is reported, drawn and refused."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.cli import app
from adamix.data import TaskData
from adamix_testing.tasks import csv_lines

TRAIN = ["--max-steps", "4", "--batch-size", "8", "--max-length", "32", "--rank", "4", "--lr", "0.05"]
PNG = b"\x89PNG\r\n"


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _document(*arguments: object) -> dict[str, Any]:
    result = _invoke("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, colours: TaskData, numbers: TaskData) -> dict[str, Path]:
    """A file of each task; the numbers as a regression."""
    directory = tmp_path_factory.mktemp("data")
    paths = {}
    for data in (colours, numbers):
        paths[data.name] = directory / f"{data.name}.csv"
        paths[data.name].write_text("\n".join(csv_lines(data)) + "\n")
    return paths


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path, texts: dict[str, Path]
) -> dict[str, tuple[object, ...]]:
    """What `evaluate` is given of each trained mixture, on its training rows: there are enough of them."""
    found: dict[str, tuple[object, ...]] = {}
    for name, path in texts.items():
        out = tmp_path_factory.mktemp(name)
        kind = ("--task-type", "regression") if name == "numbers" else ()
        result = _invoke("train", "--backbone", backbone_directory, "--data", path, *TRAIN, *kind, "--out", out)
        assert result.exit_code == 0, result.stderr
        found[name] = (out, "--data", path, "--split", "train")
    return found


def test_draws_are_reported_one_by_one_beside_the_merged(runs: dict[str, tuple[object, ...]], tmp_path: Path) -> None:
    plot = tmp_path / "draws.png"
    document = _document(*runs["numbers"], "--routing", "random", "--seeds", 5, "--plot", plot)
    draws = [draw["metrics"] for draw in document["draws"]]
    assert [draw["seed"] for draw in document["draws"]] == [0, 1, 2, 3, 4]
    assert len({draw["mse"] for draw in draws}) > 1
    for name, mean in document["metrics"].items():
        values = [draw[name] for draw in draws]
        assert mean == pytest.approx(statistics.mean(values))
        assert document["summary"][name] == {
            "mean": pytest.approx(mean),
            "std": pytest.approx(statistics.stdev(values)),
            "min": min(values),
            "max": max(values),
        }
    assert document["merged"] == _document(*runs["numbers"])["metrics"]
    assert document["routing"] == "random:batch"
    assert document["rows"] == _document(*runs["numbers"])["rows"]
    assert plot.read_bytes().startswith(PNG)
    one = _document(*runs["numbers"], "--routing", "random:token", "--seeds", 1)
    assert one["summary"]["mse"]["std"] is None
    assert len(_document(*runs["numbers"], "--routing", "random:sentence")["draws"]) == 10


def test_an_ensemble_comes_with_its_calibration(runs: dict[str, tuple[object, ...]], tmp_path: Path) -> None:
    plot = tmp_path / "reliability.svg"
    document = _document(*runs["colours"], "--routing", "ensemble:probabilities", "--seeds", 4, "--plot", plot)
    assert list(document["calibration"]) == ["merged", "ensemble-paired", "ensemble-all", "monte-carlo"]
    for found in document["calibration"].values():
        assert set(found) == {"ece", "nll", "brier", "accuracy"}
        assert 0 <= found["ece"] <= 1
    assert document["calibration"]["merged"]["accuracy"] == pytest.approx(document["merged"]["accuracy"])
    assert document["calibration"]["ensemble-paired"]["accuracy"] == pytest.approx(document["metrics"]["accuracy"])
    uncertainty = document["uncertainty"]
    assert uncertainty["routes"] == 4
    assert 0 <= uncertainty["mutual_information"] <= uncertainty["predictive_entropy"]
    assert b"<svg" in plot.read_bytes()[:500]


def test_a_regression_reports_the_spread_of_its_values(runs: dict[str, tuple[object, ...]], tmp_path: Path) -> None:
    document = _document(*runs["numbers"], "--routing", "ensemble:all", "--seeds", 3)
    assert document["calibration"] == {}
    assert set(document["metrics"]) == {"pearson", "spearman", "mse"}
    spread = document["uncertainty"]
    assert 0 < spread["mean_deviation"] <= spread["largest_deviation"]
    plot = _invoke("evaluate", *runs["numbers"], "--routing", "ensemble", "--plot", tmp_path / "x.png")
    assert plot.exit_code == 2
    assert "no probabilities" in plot.stderr
    assert "mean_deviation" in _invoke("evaluate", *runs["numbers"], "--routing", "ensemble", "--seeds", 2).stdout


def test_a_fixed_expert_is_one_number(runs: dict[str, tuple[object, ...]]) -> None:
    document = _document(*runs["colours"], "--routing", "fixed:2")
    assert set(document) == {"metrics", "rows", "truncated", "routing"}
    assert document["routing"] == "fixed:2"
    assert document["metrics"] != {}


def test_the_mixture_file_is_as_good_as_its_directory(runs: dict[str, tuple[object, ...]]) -> None:
    out, *rest = runs["colours"]
    file = Path(str(out)) / "mixture.safetensors"
    for routing in ("merged", "fixed:1"):
        assert _document(file, *rest, "--routing", routing) == _document(out, *rest, "--routing", routing)


def test_tables_are_for_people(runs: dict[str, tuple[object, ...]]) -> None:
    draws = _invoke("evaluate", *runs["colours"], "--routing", "random", "--seeds", 3).stdout.splitlines()
    assert draws[0].split() == ["metric", "mean", "std", "min", "max", "merged"]
    assert draws[1].startswith("accuracy")
    assert [line.split()[0] for line in draws[-3:]] == ["0", "1", "2"]
    ensemble = _invoke("evaluate", *runs["colours"], "--routing", "ensemble", "--seeds", 2).stdout
    assert "mutual_information" in ensemble
    assert "monte-carlo" in ensemble


def test_predictions_are_those_of_the_first_draw_or_of_the_mean(
    runs: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    def saved(*arguments: object) -> list[Any]:
        path = tmp_path / "predictions.jsonl"
        _document(*runs["colours"], *arguments, "--save-predictions", path)
        return [json.loads(line)["logits"] for line in path.read_text().splitlines()]

    first = saved("--routing", "random", "--seeds", 1)
    assert saved("--routing", "random", "--seeds", 3) == first
    single = [saved("--routing", f"fixed:{expert}") for expert in range(4)]
    mean = saved("--routing", "ensemble", "--seeds", 2)
    for row, logits in enumerate(mean):
        assert logits == pytest.approx([statistics.mean(column) for column in zip(*(s[row] for s in single))], abs=1e-5)  # noqa: B905


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--routing", "sometimes"), "--routing must be merged"),
        (("--routing", "fixed:4"), "experts 0 to 3"),
        (("--routing", "fixed:0", "--seeds", 3), "--seeds is for random routing"),
        (("--routing", "ensemble", "--seeds", 1), "two or more"),
        (("--plot", "x.png"), "--plot draws random routing"),
        (("--routing", "random", "--plot", "x.bmp"), "png, svg, pdf"),
        (("--routing", "random", "--plot", "nowhere/x.png"), "no directory"),
        (("--routing", "random", "--seeds", 0), "--seeds"),
        (("--save-predictions", "/"), "/ is a directory"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(
    runs: dict[str, tuple[object, ...]], arguments: tuple[object, ...], words: str
) -> None:
    result = _invoke("evaluate", *runs["colours"], *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.split())


def test_a_merged_file_has_one_expert(runs: dict[str, tuple[object, ...]], tmp_path: Path) -> None:
    out, *rest = runs["colours"]
    merged = tmp_path / "adapter.safetensors"
    assert _invoke("merge", out, "--out", merged).exit_code == 0
    for routing in ("random", "fixed:0", "ensemble"):
        result = _invoke("evaluate", merged, *rest, "--routing", routing)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "is merged into one" in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.weights
def test_routes_through_a_real_backbone(tmp_path: Path) -> None:
    """A few steps on MiniLM: each route answers, differs from the others, and the merged one is the merged file's."""
    out, merged = tmp_path / "run", tmp_path / "adapter.safetensors"
    questions = {"LOC": "What city is the capital of Peru", "HUM": "Who wrote Emma", "NUM": "How many legs has a crab"}
    rows = tmp_path / "rows.csv"
    lines = [f"{text} {i},{label}" for i in range(8) for label, text in questions.items()]
    rows.write_text("\n".join(["text,label", *lines]) + "\n")
    data = ("--data", rows, "--split", "train")
    steps = ("--max-steps", 6, "--batch-size", 6, "--lr", 5e-3)
    trained = _invoke("train", "--backbone", "minilm", *data[:2], *steps, "--out", out)
    assert trained.exit_code == 0, trained.stderr
    assert _invoke("merge", out, "--out", merged).exit_code == 0
    report = _document(out, *data, "--routing", "random", "--seeds", 3)
    assert report["merged"] == _document(merged, *data)["metrics"]
    ensemble = _document(out, *data, "--routing", "ensemble", "--seeds", 3)
    assert ensemble["merged"] == report["merged"]
    nll = {name: found["nll"] for name, found in ensemble["calibration"].items()}
    # Up is shared, so all pairs are the paired ones; any other way to average differs.
    assert nll["ensemble-all"] == nll["ensemble-paired"]
    assert len(set(nll.values())) == 3
    assert ensemble["uncertainty"]["mutual_information"] > 0
