"""Trained and pushed to a real server: what passes its gate goes live, what does not changes nothing."""

import json
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.backbones import backbone
from adamix.data import load
from adamix.evaluation import labelled
from adamix.files import adapter_file
from adamix_client import Classification, Regression
from adamix_server.cli.main import app
from adamix_testing.servers import Server, StartServer

ANIMALS = ("bird", "cat", "dog")
FILLERS = ("the", "a", "runs", "sleeps", "eats", "big", "small", "red", "blue", "quick", "lazy")
# Two processes of one training, as torchrun starts them, forked from one that has imported what takes long. Arguments:
# a free port, and those of the command.
TWO = """
import os, sys
import adamix.training.train

for rank in range(2):
    if os.fork() == 0:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv.pop(1)}
        from adamix_server.cli.main import main
        sys.exit(main())
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))
"""
TRAIN = ["--max-steps", "60", "--batch-size", "16", "--max-length", "16", "--rank", "4", "--lr", "0.02"]


@pytest.fixture(scope="module")
def body(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with larger weights: a random body must pass on which words it saw."""
    import torch
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("body")
    shutil.copytree(backbone_directory, directory, dirs_exist_ok=True)
    config = BertConfig.from_pretrained(directory)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which animal is in the text."""
    return _write(tmp_path_factory.mktemp("data") / "animals.csv", lambda animal: animal)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """How many legs it has, and a half."""
    legs = {"bird": "2.5", "cat": "4.5", "dog": "4.5"}
    return _write(tmp_path_factory.mktemp("data") / "sizes.csv", lambda animal: legs[animal])


def _write(path: Path, label: Callable[[str], str]) -> Path:
    draw = random.Random(0)
    lines = ["text,label"]
    for _ in range(240):
        animal = draw.choice(ANIMALS)
        words = [animal, *draw.sample(FILLERS, 3)]
        draw.shuffle(words)
        lines.append(f"{' '.join(words)},{label(animal)}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def server(serve: Callable[[Path | str], Server], body: Path) -> Server:
    return serve(body)


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _push(server: Server, body: Path, data: Path, out: Path, task: str, *more: object) -> Any:
    where = ["--push", server.address, "--task", task, "--json"]
    return _invoke("train", "--backbone", body, "--data", data, *TRAIN, "--out", out, *where, *more)


def test_what_passes_goes_live_and_answers_as_it_does_offline(
    server: Server, body: Path, animals: Path, sizes: Path, tmp_path: Path
) -> None:
    for task, data, metric in (("animals", animals, "accuracy"), ("sizes", sizes, "mse")):
        result = _push(server, body, data, tmp_path / task, task)
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        push = document["push"]
        assert (push["registered"], push["already_exists"], push["error"]) == (True, False, None)
        assert push["metrics"] == document["validation"]
        (verdict,) = push["gate"]["verdicts"]
        assert (verdict["gate"], verdict["metric"], verdict["holds"]) == ("baseline", metric, True)
        assert verdict["value"] == push["metrics"][metric]

    loaded, tokenizer = backbone.load(str(body)), backbone.load_tokenizer(str(body))
    with server.client() as client:
        for task, data in (("animals", animals), ("sizes", sizes)):
            adapter = adapter_file.read(tmp_path / task / "adapter.safetensors")
            assert client.get_task(task).traffic == ((adapter.digest, 1),)
            rows = load(str(data), split="test")
            offline = labelled.evaluate(adapter, loaded, tokenizer, rows)
            texts = [example.text for example in rows.examples][:64]
            answers = client.predict(task=task, texts=texts, return_logits=True).predictions
            for answer, logits, prediction in zip(answers, offline.logits, offline.predictions, strict=False):
                assert answer.logits == pytest.approx(logits, abs=1e-4)
                if isinstance(answer.result, Classification):
                    assert answer.result.label == prediction
                else:
                    assert isinstance(answer.result, Regression)


def test_a_gate_that_fails_leaves_the_live_version_and_the_files(
    server: Server, body: Path, animals: Path, tmp_path: Path
) -> None:
    assert _push(server, body, animals, tmp_path / "good", "gated").exit_code == 0
    with server.client() as client:
        before = client.get_task("gated").traffic
    for number, (gate, more) in enumerate(
        [
            ("accuracy>=1.1", ("--max-steps", 1)),
            ("baseline", ("--max-steps", 1, "--lr", 0)),
            ("no-worse:accuracy", ("--max-steps", 1, "--lr", 0)),
        ]
    ):
        out = tmp_path / f"bad{number}"
        result = _push(server, body, animals, out, "gated", "--gate", gate, "--seed", 7, *more)
        assert result.exit_code == 1
        document = json.loads(result.stdout)["push"]
        assert (document["registered"], document["version"], document["gate"]["holds"]) == (False, None, False)
        assert result.stderr.splitlines()[-1].startswith("error: not registered: accuracy ")
        assert adapter_file.read(out / "adapter.safetensors").digest == document["digest"]
        with server.client() as client:
            assert client.get_task("gated").traffic == before
            assert len(client.versions("gated")) == 1


def test_the_same_training_again_is_one_version_no_worse_than_itself(
    server: Server, body: Path, animals: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gates = ["--gate", "no-worse:accuracy", "--gate", "accuracy>=0", "--max-steps", 4]
    first = _push(server, body, animals, out, "again", *gates)
    assert first.exit_code == 0, first.stderr
    second = _push(server, body, animals, out, "again", *gates, "--resume")
    assert second.exit_code == 0, second.stderr
    one, two = json.loads(first.stdout)["push"], json.loads(second.stdout)["push"]
    assert (one["already_exists"], two["already_exists"]) == (False, True)
    assert one["version"] == two["version"]
    assert one["gate"]["verdicts"][0]["bound"] is None
    assert two["gate"]["verdicts"][0]["bound"] == two["metrics"]["accuracy"]


def test_what_could_not_be_pushed_is_found_out_before_the_training(
    server: Server, body: Path, backbone_directory: Path, animals: Path, sizes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    base = ["train", "--data", animals, *TRAIN, "--out", out]
    only_train = tmp_path / "split"
    only_train.mkdir()
    for name in ("train.csv", "test.csv"):
        shutil.copyfile(animals, only_train / name)
    here = ["--push", server.address, "--task", "early"]
    cases: list[tuple[list[object], int, str]] = [
        (
            [*base, "--backbone", body, "--push", "127.0.0.1:1", "--task", "early"],
            1,
            "no server answers at 127.0.0.1:1",
        ),
        ([*base, "--backbone", backbone_directory, *here], 1, "has another backbone than"),
        ([*base, "--backbone", body, "--push", "localhost", "--task", "early"], 2, "'localhost' is not HOST:PORT"),
        ([*base, "--backbone", body, "--push", server.address], 2, "--push needs --task"),
        ([*base, "--backbone", body, "--task", "early"], 2, "--task is for --push"),
        ([*base, "--backbone", body, "--gate", "baseline"], 2, "--gate is for --push"),
        ([*base, "--backbone", body, "--push", server.address, "--task", "No Id"], 2, "--task is not a valid id"),
        ([*base, "--backbone", body, *here, "--gate", "accuracy"], 2, "a gate is"),
        ([*base, "--backbone", body, *here, "--gate", "pearson>=0.1"], 2, "has accuracy, macro_f1"),
        ([*base, "--backbone", body, *here, "--push-split", "train"], 2, "validation or test"),
        (
            [*base, "--backbone", body, *here, "--push-split", "test", "--gate", "no-worse:accuracy"],
            2,
            "no-worse cannot compare",
        ),
        (
            ["train", "--data", only_train, *TRAIN, "--out", out, "--backbone", body, *here],
            1,
            "has no validation split",
        ),
    ]
    for arguments, code, message in cases:
        result = _invoke(*arguments)
        assert (result.exit_code, result.stdout) == (code, ""), result.stderr
        assert message in result.stderr.replace("\n", " ")
        assert "Traceback" not in result.stderr
        assert not out.exists()


def test_a_live_version_of_other_data_is_not_compared_with(
    server: Server, body: Path, animals: Path, tmp_path: Path
) -> None:
    assert (
        _push(server, body, animals, tmp_path / "one", "moved", "--max-steps", 4, "--gate", "accuracy>=0").exit_code
        == 0
    )
    renamed = tmp_path / "beasts.csv"
    shutil.copyfile(animals, renamed)
    result = _push(server, body, renamed, tmp_path / "two", "moved", "--gate", "no-worse:accuracy")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "was measured on animals, not on beasts" in result.stderr
    assert not (tmp_path / "two").exists()


def test_a_server_that_goes_away_meanwhile_costs_nothing(
    start_server: StartServer,
    body: Path,
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[Path | str], Server],
) -> None:
    """The merged file stays, and the command to register it is printed."""
    from adamix_server.cli.push import Push

    server = serve(body)
    check = Push.check

    def check_and_lose(self: Push, *arguments: Any, **named: Any) -> None:
        check(self, *arguments, **named)
        self._address = "127.0.0.1:1"

    monkeypatch.setattr(Push, "check", check_and_lose)
    out = tmp_path / "run"
    result = _push(server, body, animals, out, "lost", "--max-steps", 4, "--gate", "accuracy>=0")
    assert result.exit_code == 1
    push = json.loads(result.stdout)["push"]
    assert (push["registered"], push["gate"]["holds"]) == (False, True)
    file = out / "adapter.safetensors"
    assert f"to register the adapter: adamix register lost {file} --server 127.0.0.1:1" in result.stderr
    registered = _invoke("register", "lost", file, "--server", server.address, "--json")
    assert json.loads(registered.stdout)["version"]["digest"] == push["digest"]


def test_a_sweep_pushes_every_task_that_passes(
    server: Server, body: Path, animals: Path, sizes: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    file.write_text(
        f"""
        [defaults]
        backbone = "{body}"
        max-steps = 60
        batch-size = 16
        max-length = 16
        rank = 4
        lr = 0.02
        [[task]]
        name = "sweep-animals"
        data = "{animals}"
        gate = ["baseline", "accuracy>=0.4"]
        [[task]]
        name = "sweep-sizes"
        data = "{sizes}"
        [[task]]
        name = "sweep-hopeless"
        data = "{animals}"
        gate = "accuracy>=1.01"
        max-steps = 1
        """
    )
    alone = _invoke("sweep", file, "--out", out, "--json")
    assert alone.exit_code == 1
    states = {entry["task"]: entry["state"] for entry in json.loads(alone.stdout)["tasks"]}
    assert states == {"sweep-animals": "finished", "sweep-sizes": "finished", "sweep-hopeless": "rejected"}

    pushed = _invoke("sweep", file, "--out", out, "--push", server.address, "--json")
    assert pushed.exit_code == 1
    entries = {entry["task"]: entry for entry in json.loads(pushed.stdout)["tasks"]}
    with server.client() as client:
        live = {task.task: task.traffic[0][0] for task in client.tasks() if task.task.startswith("sweep-")}
    assert live == {name: entries[name]["result"]["release"]["version"] for name in ("sweep-animals", "sweep-sizes")}
    again = json.loads(_invoke("sweep", file, "--out", out, "--push", server.address, "--json").stdout)
    assert [entry["skipped"] for entry in again["tasks"]] == [True, True, False]
    with server.client() as client:  # as a server with another store, which was never pushed to
        client.delete_task("sweep-animals")
    anew = json.loads(_invoke("sweep", file, "--out", out, "--push", server.address, "--json").stdout)
    assert [entry["skipped"] for entry in anew["tasks"]] == [False, True, False]
    with server.client() as client:
        assert client.get_task("sweep-animals").traffic[0][0] == live["sweep-animals"]


@pytest.mark.slow
def test_of_two_processes_the_first_one_pushes(server: Server, body: Path, animals: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as free:
        launch = [sys.executable, "-c", TWO, str(free.getsockname()[1])]
    train = ["train", "--backbone", str(body), "--data", str(animals), *TRAIN, "--out", str(out)]
    push = ["--push", server.address, "--task", "both", "--gate", "accuracy>=0", "--json", "--max-steps", "4"]
    done = subprocess.run([*launch, *train, *push], capture_output=True, text=True, check=True, timeout=300)
    trained = json.loads(done.stdout)
    assert trained["steps"] == 4
    assert trained["validation"]
    document = trained["push"]
    assert (document["registered"], document["already_exists"]) == (True, False)
    with server.client() as client:
        assert [version.digest for version in client.versions("both")] == [document["digest"]]
