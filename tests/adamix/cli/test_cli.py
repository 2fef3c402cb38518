"""The commands as a user types them: results on stdout, everything else on stderr, exit codes 0, 1, 2."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from adamix.cli import app, exit_codes
from adamix.data import TaskData
from adamix.errors import InvalidAdapter, InvalidConfig, NotFound
from adamix.files import adapter_file, disk
from adamix.files.manifest import HeadSpec

TRAIN = ["--max-steps", "4", "--batch-size", "8", "--max-length", "32", "--rank", "4", "--lr", "0.01"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path, csv: Path) -> Path:
    out = tmp_path_factory.mktemp("run")
    result = _invoke("train", "--backbone", backbone_directory, "--data", csv, *TRAIN, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def merged(trained: Path) -> Path:
    file = trained.parent / "adapter.safetensors"
    result = _invoke("merge", trained, "--out", file)
    assert result.exit_code == 0, result.stderr
    return file


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_prints_what_it_made(tmp_path: Path, backbone_directory: Path, csv: Path) -> None:
    out = tmp_path / "run"
    result = _invoke(
        "train", "--backbone", backbone_directory, "--data", csv, *TRAIN, "--few-shot", 12, "--out", out, "--json"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["mixture"] == str(out / "mixture.safetensors")
    assert (document["rows"], document["steps"]) == (12, 4)
    assert document["parameters"] == {"trained": 1376, "merged": 584, "head": 99}
    assert set(document["validation"]) == {"accuracy", "macro_f1"}


def test_data_without_a_validation_split_train_too(tmp_path: Path, backbone_directory: Path, csv: Path) -> None:
    directory = tmp_path / "splits"
    directory.mkdir()
    for name in ("train.csv", "test.csv"):
        (directory / name).write_bytes(csv.read_bytes())
    out = tmp_path / "run"
    result = _invoke("train", "--backbone", backbone_directory, "--data", directory, *TRAIN, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["validation"] == {}
    assert "not validated" in result.stderr


def test_merge_writes_one_small_file(merged: Path, trained: Path) -> None:
    adapter = adapter_file.read(merged)
    assert adapter.manifest.training.merge == "uniform"
    assert adapter.manifest.training.num_experts == 4
    again = _invoke("merge", trained, "--out", merged.with_name("again.safetensors"), "--json")
    document = json.loads(again.stdout)
    assert document["digest"] == adapter.digest
    assert merged.with_name("again.safetensors").read_bytes() == merged.read_bytes()


def test_inspect_shows_the_manifest_and_the_counts(merged: Path) -> None:
    adapter = adapter_file.read(merged)
    document = json.loads(_invoke("inspect", merged, "--json").stdout)
    assert document["parameters"] == {"adapter": 584, "head": 99}
    assert (document["bytes"], document["digest"]) == (merged.stat().st_size, adapter.digest)
    extra = {"parameters", "bytes", "digest"}
    assert {key: value for key, value in document.items() if key not in extra} == adapter.manifest.to_json()
    assert adapter.digest in _invoke("inspect", merged).stdout


def test_an_embedding_is_shown_but_not_evaluated(merged: Path, csv: Path, tmp_path: Path) -> None:
    whole, file = adapter_file.read(merged), tmp_path / "vectors.safetensors"
    manifest = msgspec.structs.replace(whole.manifest, head=HeadSpec(type="embedding", pooling="mean"))
    body = {name: tensor for name, tensor in whole.tensors.items() if not name.startswith("head.")}
    disk.write(file, adapter_file.encode(manifest, body))
    assert "head: embedding\n" in _invoke("inspect", file).stdout
    result = _invoke("evaluate", file, "--data", csv)
    assert result.exit_code == 1
    assert "head is embedding, which has no labels to compare with" in result.stderr


def test_evaluate_answers_the_same_for_a_file_and_its_directory(merged: Path, trained: Path, csv: Path) -> None:
    """`--backbone` defaults to the one the adapter names."""
    by_file = _invoke("evaluate", merged, "--data", csv, "--split", "train", "--json")
    by_directory = _invoke("evaluate", trained, "--data", csv, "--split", "train", "--json")
    document = json.loads(by_file.stdout)
    assert document == json.loads(by_directory.stdout)
    assert set(document) == {"metrics", "rows", "truncated"}
    assert document["rows"] > 30
    assert "accuracy" in _invoke("evaluate", merged, "--data", csv).stdout


def test_predictions_are_saved_as_lines(merged: Path, csv: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    result = _invoke("evaluate", merged, "--data", csv, "--save-predictions", path, "--json")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    document = json.loads(result.stdout)
    assert len(lines) == document["rows"]
    assert set(lines[0]) == {"text", "label", "prediction", "logits"}
    hits = sum(line["label"] == line["prediction"] for line in lines)
    assert document["metrics"]["accuracy"] == pytest.approx(hits / len(lines))
    assert all(len(line["logits"]) == 3 for line in lines)


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory, colours: TaskData) -> Path:
    """A regression: how many letters a text has."""
    path = tmp_path_factory.mktemp("data") / "lengths.csv"
    path.write_text("\n".join(["text,label", *(f"{e.text},{len(e.text)}.0" for e in colours.examples)]) + "\n")
    return path


def test_a_regression_is_cut_to_the_interval_it_was_trained_with(
    tmp_path: Path, backbone_directory: Path, lengths: Path
) -> None:
    out, file, saved = tmp_path / "run", tmp_path / "x.safetensors", tmp_path / "predictions.jsonl"
    flags = ["--data", lengths, "--task-type", "regression", *TRAIN, "--clip", "-5,-4.5", "--out", out]
    trained = _invoke("train", "--backbone", backbone_directory, *flags, "--json")
    assert trained.exit_code == 0, trained.stderr
    assert json.loads((out / "run.json").read_text())["head"]["clip"] == [-5.0, -4.5]
    again = _invoke("train", "--backbone", backbone_directory, *flags, "--resume")
    assert again.exit_code == 0, again.stderr
    other = _invoke("train", "--backbone", backbone_directory, *flags, "--clip", "0,9", "--resume")
    assert other.exit_code == 2
    assert "head.clip was [-5.0, -4.5], now [0.0, 9.0]" in other.stderr
    assert _invoke("merge", out, "--out", file).exit_code == 0
    assert json.loads(_invoke("inspect", file, "--json").stdout)["head"]["clip"] == [-5.0, -4.5]
    result = _invoke("evaluate", file, "--data", lengths, "--save-predictions", saved, "--json")
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert {line["prediction"] for line in lines} <= {-5.0, -4.5}, "lengths are positive, so all are cut"
    assert all(line["logits"][0] > -4.5 for line in lines)
    error = sum((line["prediction"] - line["label"]) ** 2 for line in lines) / len(lines)
    assert json.loads(result.stdout)["metrics"]["mse"] == pytest.approx(error)


@pytest.mark.parametrize("value", ["0", "0,1,2", "a,b", "5,0", "0,0", "0,nan", "0,inf", "-1e300,0", "0:5", "", ","])
def test_an_interval_is_two_numbers_the_lower_first(value: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = _invoke("train", "--backbone", "none", "--data", "none.csv", "--clip", value, "--out", out)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "clip" in result.stderr
    assert "two numbers" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "1", "--max-steps", "1"],
        ["--rank", "0"],
        ["--method", "prefix"],
        ["--share", "both"],
        ["--sites", "mlp_output"],
        ["--pooling", "max"],
        ["--device", "tpu"],
        ["--few-shot", "1"],
        ["--clip", "0,5"],  # of a classification
        ["--method", "lora", "--activation", "relu"],
        ["--no-such-flag"],
    ],
)
def test_wrong_usage_exits_2_and_leaves_no_directory(
    arguments: list[str], tmp_path: Path, backbone_directory: Path, csv: Path
) -> None:
    out = tmp_path / "run"
    result = _invoke("train", "--backbone", backbone_directory, "--data", csv, "--out", out, *TRAIN, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.strip()
    assert not out.exists()


def test_failures_exit_1_with_one_line(
    tmp_path: Path, merged: Path, trained: Path, backbone_directory: Path, csv: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(merged.read_bytes()[:-8])
    for arguments in (
        ["train", "--backbone", backbone_directory, "--data", csv, *TRAIN, "--out", trained],
        ["evaluate", broken, "--data", csv],
        ["inspect", broken],
        ["inspect", trained / "mixture.safetensors"],
        ["merge", trained / "run.json", "--out", tmp_path / "x"],
    ):
        result = _invoke(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), arguments
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr


def test_what_is_not_there_is_wrong_usage(tmp_path: Path, backbone_directory: Path, csv: Path) -> None:
    none, out = tmp_path / "none.csv", tmp_path / "out"
    for arguments in (
        ["train", "--backbone", backbone_directory, "--data", none, "--out", out],
        ["train", "--backbone", none, "--data", csv, "--out", out],
        ["evaluate", none, "--data", csv],
        ["evaluate", csv, "--data", none],
        ["evaluate", csv, "--data", csv, "--split", "valdiation"],
        ["inspect", none],
        ["merge", none, "--out", out],
        ["import", "peft", none, "--backbone", backbone_directory, "--out", out],
        ["export", "peft", none, "--out", out],
        ["sweep", none, "--out", out],
    ):
        result = _invoke(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert len(result.stderr.splitlines()) == 1
        assert not out.exists()


def test_routes_need_the_experts_that_a_merged_file_has_not(merged: Path, csv: Path) -> None:
    routing = _invoke("evaluate", merged, "--data", csv, "--routing", "ensemble")
    assert routing.exit_code == 2
    assert "--routing ensemble needs all experts" in routing.stderr
    seeds = _invoke("evaluate", merged, "--data", csv, "--seeds", "3")
    assert seeds.exit_code == 2
    assert "error: --seeds is for random routing" in seeds.stderr


def test_how_may_be_said_or_left_out(trained: Path, merged: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.safetensors"
    assert _invoke("merge", trained, "--out", path, "--how", "".join(["uni", "form"])).exit_code == 0
    assert path.read_bytes() == merged.read_bytes()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidConfig("x"), 2),
        (InvalidAdapter("x"), 1),
        (NotFound("x"), 1),
        (FileNotFoundError(2, "No such file", "x"), 1),
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (UnicodeEncodeError("utf-8", "\udcff" * 999, 0, 1, "surrogates not allowed"), 2),
    ],
)
def test_exit_codes_follow_the_error_tree(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, exit_codes():
        raise error
    assert caught.value.exit_code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_reader_that_has_left_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Click knows what to do: `adamix tasks --json | head` ends without a word."""
    with pytest.raises(BrokenPipeError), exit_codes():
        raise BrokenPipeError
    assert capsys.readouterr().err == ""


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_codes():
        raise ZeroDivisionError


def test_help_shows_whole_names_in_a_narrow_terminal_and_the_order_of_work() -> None:
    help_ = CliRunner().invoke(app, ["train", "--help"], terminal_width=80).stdout
    assert "--gradient-checkpointing / --no-gradient-checkpointing" in help_
    listed = CliRunner().invoke(app, ["--help"]).stdout
    places = [listed.index(f"\n  {name} ") for name in ("train", "sweep", "merge", "evaluate", "import", "export")]
    assert places == sorted(places)


def test_the_version() -> None:
    assert _invoke("--version").stdout == f"adamix {metadata.version('adamix')}\n"


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--method", "prefix"), ("--lr", "nan"), ("--experts", "0"), ("--head-dropout", "1"), ("--max-length", "1")],
)
def test_a_wrong_setting_is_called_as_its_flag(flag: str, value: str, tmp_path: Path) -> None:
    result = _invoke("train", "--backbone", "x", "--data", "y", "--out", tmp_path / "z", flag, value)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {flag.removeprefix('--')} must be ")


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from adamix.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_keeps_stdout_for_results(tmp_path: Path, backbone_directory: Path, csv: Path) -> None:
    """Nothing of transformers, accelerate or the progress bar may leak into a pipe."""
    command = [
        sys.executable,
        "-c",
        "from adamix.cli import app; app()",
        "train",
        "--backbone",
        str(backbone_directory),
    ]
    command += ["--data", str(csv), *TRAIN, "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["steps"] == 4
    assert "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_one_mixture(tmp_path: Path, backbone_directory: Path, csv: Path) -> None:
    """Under torchrun each process takes its share of the rows on a common route, and the first one writes."""
    script = tmp_path / "train.py"
    script.write_text("from adamix.cli import app; app()")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += ["train", "--backbone", str(backbone_directory), "--data", str(csv), *TRAIN, "--share", "none"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run"), "--json"], capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert document["steps"] == 4
    assert document["validation"]
    assert _invoke("merge", tmp_path / "run", "--out", tmp_path / "adapter.safetensors").exit_code == 0
