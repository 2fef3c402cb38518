"""Training, merging and evaluating on generation data as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.cli import app
from adamix.data import GenerationData
from adamix.data.generation import synthetic
from adamix.files import adapter_file
from adamix.merging.merge import merge

TRAIN = ["--task-type", "generation", "--max-steps", "4", "--batch-size", "8", "--max-length", "24", "--rank", "4"]
QUICK = ["--decoding", "num_beams=2,max_new_tokens=6"]


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory, likes: GenerationData) -> Path:
    """A directory with a file for each split."""
    directory = tmp_path_factory.mktemp("likes")
    lines = [
        json.dumps({"source": example.source, "references": example.references}) + "\n" for example in likes.examples
    ]
    for name, part in (("train", lines), ("validation", lines[:3]), ("test", lines[3:8])):
        (directory / f"{name}.jsonl").write_text("".join(part))
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, decoder_directory: Path, jsonl: Path) -> Path:
    out = tmp_path_factory.mktemp("run")
    result = _invoke("train", "--backbone", decoder_directory, "--data", jsonl, *TRAIN, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["rows"], document["references"], document["synthetic"]) == (12, 24, False)
    assert document["parameters"]["head"] == 0
    assert set(document["validation"]) == {"loss", "perplexity", "token_accuracy"}
    return out


def _invoke(*arguments: object) -> Any:
    # Without Java, whose start would take longer than all the rest.
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"PATH": ""})


def test_the_way_from_a_file_to_scores(trained: Path, jsonl: Path, decoder_directory: Path, tmp_path: Path) -> None:
    merged, saved = tmp_path / "likes.safetensors", tmp_path / "predictions.jsonl"
    assert _invoke("merge", trained, "--out", merged).exit_code == 0
    inspected = json.loads(_invoke("inspect", merged, "--json").stdout)
    assert inspected["head"]["type"] == "causal_lm"
    assert inspected["parameters"]["head"] == 0
    result = _invoke("evaluate", merged, "--data", jsonl, *QUICK, "--save-predictions", saved, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["rows"], document["truncated"], document["synthetic"]) == (5, 0, False)
    assert document["scoring"] == "e2e"
    assert document["decoding"]["num_beams"] == 2
    written = {"bleu", "nist", "rouge_l", "cider"}
    assert set(document["metrics"]) == {"loss", "perplexity", "token_accuracy"} | written
    # What is left out is said, in the document and on stderr.
    (warning,) = document["warnings"]
    assert "METEOR" in warning
    assert warning.split()[0] in result.stderr
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [set(line) for line in lines] == [{"source", "references", "prediction"}] * 5
    # A directory is merged on the way, and says the same.
    again = json.loads(_invoke("evaluate", trained, "--data", jsonl, *QUICK, "--json").stdout)
    assert again == document
    shown = _invoke("evaluate", merged, "--data", jsonl, *QUICK, "--scoring", "webnlg").stdout
    assert "ter " in shown
    assert "5 sources, 0 truncated" in shown


def test_what_a_program_wrote_is_called_synthetic(
    decoder_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what training and evaluation print, and in the file."""
    monkeypatch.setattr(synthetic, "SIZES", {"train": 8, "validation": 3, "test": 3})
    out, saved = tmp_path / "run", tmp_path / "predictions.jsonl"
    data = ["--data", "synthetic-e2e"]
    train = ["train", "--backbone", decoder_directory, *data, *TRAIN[2:], "--few-shot", 4, "--no-validate"]
    result = _invoke(*train, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "4 steps on 4 synthetic sources" in result.stdout
    assert "(synthetic, 4 sources, " in adapter_file.decode(merge(out)).manifest.training.data
    document = json.loads(_invoke(*train, "--out", tmp_path / "again", "--json").stdout)
    assert document["synthetic"] is True
    evaluate = ["evaluate", out, *data, "--split", "validation", "--decoding", "num_beams=1,max_new_tokens=4"]
    result = _invoke(*evaluate, "--save-predictions", saved)
    assert result.exit_code == 0, result.stderr
    assert "3 synthetic sources" in result.stdout
    assert json.loads(saved.read_text().splitlines()[0])["synthetic"] is True


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decoding", "beams=3"], "unknown decoding setting"),
        (["--scoring", "rouge"], "--scoring must be one of e2e, webnlg"),
        (
            ["--routing", "random:token", "--scoring", "e2e"],
            "texts are generated by merged, fixed:I and random routing",
        ),
        (["--decoding", "max_new_tokens=60"], "leaves no prompt"),
        (["--subset", "half"], "subset"),
    ],
)
def test_wrong_flags_are_usage_errors(trained: Path, jsonl: Path, flags: list[str], message: str) -> None:
    result = _invoke("evaluate", trained, "--data", jsonl, *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_an_encoder_generates_nothing(backbone_directory: Path, jsonl: Path, tmp_path: Path) -> None:
    result = _invoke("train", "--backbone", backbone_directory, "--data", jsonl, *TRAIN, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "has no language-model head" in result.stderr or "is an encoder" in result.stderr


def test_data_of_the_other_kind_are_named(decoder_directory: Path, jsonl: Path, tmp_path: Path) -> None:
    train = ["train", "--backbone", decoder_directory, "--out", tmp_path / "run", "--data"]
    csv = tmp_path / "pairs.csv"
    csv.write_text("source,target\na,b\n")
    for flags, code, message in (
        ([jsonl], 1, "train.jsonl:1: no key 'text' (sources and targets are for --task-type generation)"),
        ([csv], 1, "no column named text; the header needs text, label and perhaps text_pair (sources and targets are"),
        (["synthetic-e2e", "--task-type", "classification"], 1, "has texts to generate and no labels"),
        ([jsonl, "--task-type", "gen"], 2, "classification, multilabel, regression, generation, not 'gen'"),
    ):
        result = _invoke(*train, *flags)
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr


def test_flags_of_texts_are_refused_for_labels(
    backbone_directory: Path, jsonl: Path, tmp_path: Path, decoder_directory: Path
) -> None:
    labelled = tmp_path / "colours.csv"
    labelled.write_text("text,label\n" + "".join(f"{colour},{colour}\n" for colour in ("red", "green", "blue") * 4))
    out = tmp_path / "run"
    train = ["train", "--data", labelled, *TRAIN[2:], "--pooling", "last", "--no-validate", "--out", out]
    assert _invoke(*train, "--backbone", decoder_directory).exit_code == 0
    result = _invoke("evaluate", out, "--data", labelled, "--split", "train", *QUICK)
    assert result.exit_code == 2
    assert "--decoding is for generated texts, and this adapter's head is classification" in result.stderr
