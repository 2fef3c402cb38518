"""`adamix merge` as a user types it, by every method, from a training on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.cli import app
from adamix.files import adapter_file
from adamix.merging.merge import METHODS

TRAIN = ["--max-steps", "3", "--batch-size", "8", "--max-length", "32", "--rank", "2", "--experts", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path, csv: Path) -> Path:
    out = tmp_path_factory.mktemp("run")
    backbone = ("--backbone", backbone_directory)
    _merged("train", *backbone, "--data", csv, *TRAIN, "--expert-init", "same", "--no-validate", "--out", out)
    return out


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _merged(*arguments: object) -> str:
    result = _invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


@pytest.mark.parametrize(
    ("how", "flags", "record"),
    [
        ("uniform", [], "uniform"),
        ("weighted", ["--weights", "3,1"], "weighted 3,1"),
        ("learned", ["--max-rows", 10, "--steps", 2, "--lr", 0.1], "learned steps="),
        ("greedy", ["--split", "train", "--batch-size", 4], "greedy "),
        ("fisher", ["--max-rows", 10, "--seed", 3], "fisher rows=10"),
        ("regmean", ["--few-shot", 9], "regmean rows=9"),
        ("ties", ["--density", 0.5], "ties density=0.5"),
        ("dare", ["--seed", 1], "dare density=0.1 seed=1"),
    ],
)
def test_every_method_writes_an_adapter(
    how: str, flags: list[object], record: str, trained: Path, csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter.safetensors"
    data = ["--data", csv] if how in ("learned", "greedy", "fisher", "regmean") else []
    document = json.loads(_merged("merge", trained, "--out", out, "--how", how, *data, *flags, "--json"))
    adapter = adapter_file.read(out)
    assert adapter.manifest.training.merge.startswith(record)
    assert document["merge"] == adapter.manifest.training.merge
    assert document["digest"] == adapter.digest
    assert document["file"] == str(out)


def test_there_is_a_test_for_every_method() -> None:
    cases = test_every_method_writes_an_adapter.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {case[0] for case in cases} == set(METHODS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--how", "slerp"], "--how must be one of uniform"),
        (["--how", "weighted"], "--how weighted needs --weights"),
        (["--how", "weighted", "--weights", "a,b"], "one number per expert"),
        (["--how", "weighted", "--weights", "0.5,0.3,0.2"], "2 experts, but 3 weights"),
        (["--how", "weighted", "--weights", "1,-1"], "not negative"),
        (["--weights", "1,1"], "--weights is for --how weighted, not for uniform"),
        (["--few-shot", 9], "--few-shot is for --how learned, greedy, fisher, regmean"),
        (["--how", "fisher", "--data", "DATA", "--few-shot", 0], "few"),
        (["--density", 0.5], "--density is for --how ties, dare"),
        (["--how", "ties", "--density", 1.5], "density must be over 0"),
        (["--how", "ties", "--seed", 1], "--seed is for"),
        (["--how", "greedy"], "--how greedy needs --data"),
        (["--how", "fisher", "--data", "DATA", "--steps", 3], "--steps is for --how learned"),
        (["--how", "learned", "--data", "DATA", "--lr", -1], "learning_rate must be in"),
        (["--how", "fisher", "--data", "DATA", "--max-rows", 0], "max_rows must be in"),
        (["--how", "greedy", "--data", "DATA", "--split", "test"], "--split train or validation"),
        (["--how", "fisher", "--data", "DATA", "--device", "tpu"], "--device must be"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    flags: list[object], message: str, trained: Path, csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter.safetensors"
    result = _invoke("merge", trained, "--out", out, *[csv if flag == "DATA" else flag for flag in flags])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout
    assert not out.exists()


def test_the_mixture_is_not_written_over(trained: Path) -> None:
    mixture = trained / "mixture.safetensors"
    before = mixture.read_bytes()
    for source, out, message in (
        (trained, mixture, "is the mixture itself"),
        (mixture, mixture, "is the mixture itself"),
        (trained, trained, "is a directory"),
    ):
        result = _invoke("merge", source, "--out", out)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert mixture.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\nred noun1,crimson\n", "crimson"),
        ("text,label\nred noun1,red\n", "validation"),  # one row is no validation split
        ("", "0 rows"),
    ],
)
def test_data_that_do_not_fit_leave_no_file(text: str, message: str, trained: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "other.csv", tmp_path / "adapter.safetensors"
    data.write_text(text)
    split = [] if message == "validation" else ["--split", "train"]
    result = _invoke("merge", trained, "--out", out, "--how", "greedy", "--data", data, *split)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not out.exists()


def test_experts_without_a_common_start_are_refused_with_the_way_out(
    backbone_directory: Path, csv: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    _merged("train", "--backbone", backbone_directory, "--data", csv, *TRAIN, "--no-validate", "--out", run)
    result = _invoke("merge", run, "--out", tmp_path / "adapter.safetensors", "--how", "ties")
    assert result.exit_code == 2
    assert "--expert-init same" in result.stderr
