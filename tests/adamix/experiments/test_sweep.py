"""A sweep: what its file may say, and that whatever ends it, the same command goes on."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.cli import app
from adamix.data import TaskData
from adamix.errors import Cancelled, FailedPrecondition, InvalidConfig, InvalidData
from adamix.experiments.sweep import Entry, Ledger, Outcome, SweepTask, read_sweep, run, source_digest
from adamix.files import adapter_file
from adamix.training.loop import StepWatch


def _toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


class TestFile:
    def test_tasks_have_the_defaults_and_their_own(self, tmp_path: Path) -> None:
        text = """
        defaults = {lr = 1, sites = ["attn_q", "attn_v"], gate = "baseline"}
        [[task]]
        name = "a"
        lr = 0.5
        [[task]]
        name = "b-2"
        max-steps = 3
        gate = ["baseline", "mse<=1"]
        """
        first, second = read_sweep(_toml(tmp_path, text))
        assert first == SweepTask("a", {"lr": 0.5, "sites": "attn_q,attn_v", "gate": ["baseline"]})
        assert second.settings == {"lr": 1, "sites": "attn_q,attn_v", "max-steps": 3, "gate": ["baseline", "mse<=1"]}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"there is no \[\[task\]\] table"),
            ("task = 3", r"there is no \[\[task\]\] table"),
            ("[default]", "unknown table or key 'default'"),
            ("defaults = 1\n[[task]]\nname = 'a'", "defaults must be a table"),
            ("[[task]]", r"\[\[task\]\] 1 needs a name"),
            ("[[task]]\nname = '../a'", "needs a name"),
            ("[[task]]\nname = 'a..b'", "needs a name"),
            ("[[task]]\nname = 'A'", "needs a name"),
            ("[[task]]\nname = 'sweep.json'", "the sweep's own file"),
            ("[[task]]\nname = 1", "needs a name"),
            ("[[task]]\nname = 'a'\n[[task]]\nname = 'a'", r"\[\[task\]\] 2: there is another task 'a'"),
            ("[[task]]\nname = 'a'\nmax_steps = 1", r"1 \(a\): unknown key 'max_steps'; did you mean max-steps\?"),
            ("[defaults]\nout = 'x'", r"\[defaults\]: unknown key 'out'$"),
            ("[[task]]\nname = 'a'\nmax-steps = 1.5", r"\(a\): max-steps must be an integer, not '1.5'"),
            ("[[task]]\nname = 'a'\nmax-steps = true", "must be an integer"),
            ("[[task]]\nname = 'a'\nlr = '1'", "lr must be a number"),
            ("[[task]]\nname = 'a'\nvalidate = 1", "validate must be true or false"),
            ("[[task]]\nname = 'a'\ndata = 1", "data must be a string"),
            ("[[task]]\nname = 'a'\ndata = [1]", "data must be a string"),
            ("[[task]\n", "is not TOML"),
            ("a = " + "[" * 9000, "is not TOML"),
        ],
    )
    def test_mistakes_are_named_with_their_table(self, text: str, message: str, tmp_path: Path) -> None:
        if "[[task]]" not in text and text.startswith("[defaults]"):
            text += "\n[[task]]\nname = 'a'"
        with pytest.raises(InvalidConfig, match=message):
            read_sweep(_toml(tmp_path, text))

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="No such file"):
            read_sweep(tmp_path / "none.toml")
        (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InvalidConfig, match="is not TOML"):
            read_sweep(tmp_path / "binary.toml")


Trained = Callable[[SweepTask, Path], Outcome]


def _finish(_: SweepTask, out: Path) -> Outcome:
    out.mkdir(exist_ok=True)
    return Outcome("finished", {"made": out.name})


TASKS = [SweepTask(name, {"lr": 1.0}) for name in ("a", "b", "c")]


class TestRun:
    def test_what_fails_does_not_keep_the_others(self, tmp_path: Path) -> None:
        def train(task: SweepTask, out: Path) -> Outcome:
            if task.name == "a":
                raise InvalidData("no rows")
            if task.name == "b":
                raise OSError(28, "No space left on device", "x")
            return _finish(task, out)

        entries = list(run(TASKS, tmp_path, train))
        assert [(entry.state, entry.error) for entry in entries] == [
            ("failed", "no rows"),
            ("failed", "x: No space left on device"),
            ("finished", None),
        ]
        again = list(run(TASKS, tmp_path, _finish))
        assert [(entry.state, entry.skipped) for entry in again] == [
            ("finished", False),
            ("finished", False),
            ("finished", True),
        ]

    @pytest.mark.parametrize("stop", [Cancelled("stopped after step 3; continue with --resume"), KeyboardInterrupt()])
    def test_ctrl_c_ends_it_and_the_same_call_goes_on(self, stop: BaseException, tmp_path: Path) -> None:
        calls: list[str] = []

        def train(task: SweepTask, out: Path) -> Outcome:
            calls.append(task.name)
            if calls == ["a", "b"]:
                raise stop
            return _finish(task, out)

        with pytest.raises(Cancelled, match=r"b: stopped.*; the same command goes on from there"):
            list(run(TASKS, tmp_path, train))
        entry = Ledger(tmp_path).entry("b")
        assert entry is not None
        assert entry.state == "interrupted"
        assert [entry.state for entry in run(TASKS, tmp_path, train)] == ["finished"] * 3
        assert calls == ["a", "b", "b", "c"]

    def test_a_kill_at_any_moment_loses_nothing_that_was_finished(self, tmp_path: Path) -> None:
        process = multiprocessing.get_context("fork").Process(target=_hang_in_b, args=(tmp_path,))
        process.start()
        end = time.monotonic() + 60
        while not (tmp_path / "b").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(FailedPrecondition, match="another sweep is running"):
            list(run(TASKS, tmp_path, _finish))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert [entry.skipped for entry in run(TASKS, tmp_path, _finish)] == [True, False, False]

    def test_other_settings_are_refused_by_name_until_the_directory_is_gone(self, tmp_path: Path) -> None:
        assert [entry.state for entry in run(TASKS[:1], tmp_path, _finish)] == ["finished"]
        changed = [SweepTask("a", {"lr": 2.0})]
        for _ in range(2):
            (entry,) = run(changed, tmp_path, _finish)
            assert entry.state == "failed"
            assert str(entry.error).startswith("lr was 1.0 when ")
        (tmp_path / "a").rmdir()
        assert [entry.state for entry in run(changed, tmp_path, _finish)] == ["finished"]

    def test_a_finished_task_whose_directory_is_gone_is_trained_again(self, tmp_path: Path) -> None:
        list(run(TASKS[:2], tmp_path, _finish))
        (tmp_path / "a").rmdir()
        assert [entry.skipped for entry in run(TASKS[:2], tmp_path, _finish)] == [False, True]

    def test_a_metric_that_is_no_number_leaves_the_ledger_readable(self, tmp_path: Path) -> None:
        metrics = {"mse": float("inf"), "pearson": float("nan"), "spearman": 0.5}
        Ledger(tmp_path).put(Entry("a", "finished", {}, result={"release": {"metrics": metrics}}))
        entry = Ledger(tmp_path).entry("a")
        assert entry is not None
        assert entry.result["release"]["metrics"] == {"mse": None, "pearson": None, "spearman": 0.5}

    def test_a_gate_may_change_while_a_task_is_under_way(self, tmp_path: Path) -> None:
        list(run(TASKS[:1], tmp_path, _finish))
        (entry,) = run([SweepTask("a", {"lr": 1.0, "gate": ["baseline"]})], tmp_path, _finish)
        assert (entry.state, entry.skipped) == ("finished", False)

    def test_other_data_under_the_same_name_are_noticed(self, tmp_path: Path) -> None:
        data = tmp_path / "rows.csv"
        data.write_text("one")
        tasks = [SweepTask("a", {"data": str(data)})]
        first = source_digest(str(data))
        list(run(tasks, tmp_path / "out", _finish))
        assert [entry.skipped for entry in run(tasks, tmp_path / "out", _finish)] == [True]
        data.write_text("two")
        assert source_digest(str(data)) != first
        assert [entry.skipped for entry in run(tasks, tmp_path / "out", _finish)] == [False]

    @pytest.mark.parametrize(
        ("data", "read", "unread"),
        [
            ("DIR", ["train.csv", "validation.jsonl", "test.csv"], ["notes.txt", "old/train.csv"]),
            ("glue:rte=DIR", ["RTE/train.tsv", "RTE/dev.tsv"], ["RTE/test.tsv", "QNLI/train.tsv", "train.csv"]),
            ("glue:rte=DIR", ["train.tsv", "dev.tsv"], ["test.tsv"]),
            ("glue:mnli-mm=DIR", ["MNLI/train.tsv", "MNLI/dev_mismatched.tsv"], ["MNLI/dev_matched.tsv"]),
            ("glue:mrpc=DIR", ["msr_paraphrase_train.txt", "dev_ids.tsv"], ["msr_paraphrase_test.txt"]),
            ("DIR", ["trainset.csv", "devset.csv", "testset_w_refs.csv"], ["testset.csv"]),
            ("DIR", ["dart-v1.1.1-full-train.json", "dart-v1.1.1-full-dev.json"], ["README.md"]),
            ("DIR", ["train/1triples/a.xml", "train/2triples/a.xml", "dev/b.xml"], ["train/a.txt", "more/a.xml"]),
        ],
    )
    def test_every_file_that_a_source_reads_is_watched_and_no_other(
        self, data: str, read: list[str], unread: list[str], tmp_path: Path
    ) -> None:
        for name in read + unread:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("before")
        source = data.replace("DIR", str(tmp_path))
        seen = {source_digest(source)}
        for name in unread:
            (tmp_path / name).write_text("after")
        assert {source_digest(source)} == seen
        assert None not in seen
        for name in read:
            (tmp_path / name).write_text("after")
            seen.add(source_digest(source))
        (tmp_path / read[-1]).unlink()
        seen.add(source_digest(source))
        assert len(seen) == 2 + len(read), "each change made another digest"

    def test_a_file_that_moves_to_another_split_is_noticed(self, tmp_path: Path) -> None:
        for name in ("dev/a.xml", "train/b.xml", "train/c.xml"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name[-5])
        before = source_digest(str(tmp_path))
        (tmp_path / "train/b.xml").rename(tmp_path / "dev/b.xml")
        assert source_digest(str(tmp_path)) != before

    @pytest.mark.parametrize(
        "data",
        ["trec", "synthetic-e2e", "glue:rte", "glue:none=.", "glue:rte=", "e2e", "", "a\0b", "x" * 5000, "none.csv"],
    )
    def test_what_reads_no_file_has_no_digest(self, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("trec", "synthetic-e2e"):  # a source of that name is not the directory
            (tmp_path / name).mkdir()
            (tmp_path / name / "train.csv").write_text("text,label\n")
        assert source_digest(data) is None

    def test_a_damaged_ledger_is_refused_and_kept(self, tmp_path: Path) -> None:
        for text in ("", "[]", '{"tasks": [{"task": 1}]}', '{"other": []}', '{"tasks": [{"task": "a"'):
            (tmp_path / "sweep.json").write_text(text)
            with pytest.raises(FailedPrecondition, match="is damaged"):
                list(run(TASKS, tmp_path, _finish))
            assert (tmp_path / "sweep.json").read_text() == text

    def test_the_ledger_keeps_what_it_was_given(self, tmp_path: Path) -> None:
        entry = Entry("a", "rejected", {"lr": 1.0, "gate": ["x"], "validate": True}, "ab", 1.5, {"n": [1]}, "why")
        Ledger(tmp_path).put(entry)
        assert Ledger(tmp_path).entry("a") == entry


def _hang_in_b(out: Path) -> None:
    def train(task: SweepTask, directory: Path) -> Outcome:
        outcome = _finish(task, directory)
        if task.name == "b":
            time.sleep(600)
        return outcome

    list(run(TASKS, out, train))


@pytest.fixture
def file(tmp_path: Path, backbone_directory: Path, csv: Path) -> Path:
    return _toml(
        tmp_path,
        f"""
        [defaults]
        backbone = "{backbone_directory}"
        data = "{csv}"
        max-steps = 3
        max-length = 32
        batch-size = 8
        rank = 2
        [[task]]
        name = "first"
        [[task]]
        name = "broken"
        data = "{csv.with_name("none.csv")}"
        [[task]]
        name = "lora"
        method = "lora"
        sites = ["attn_q"]
        validate = false
        split = "test"
        [[task]]
        name = "hopeless"
        gate = "accuracy>=1.5"
        """,
    )


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_sweep_trains_merges_and_measures(
    file: Path, tmp_path: Path, csv: Path, backbone_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamix.backbones import backbone as backbones

    loads: list[str] = []
    load = backbones.load
    monkeypatch.setattr(backbones, "load", lambda name, **how: loads.append(name) or load(name, **how))
    out = tmp_path / "out"
    result = _invoke("sweep", file, "--out", out, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["finished"], document["rejected"], document["failed"], document["left"]) == (2, 1, 1, 0)
    first, broken, lora, hopeless = document["tasks"]
    assert loads == [str(backbone_directory)], "one backbone for all"
    assert "none.csv" in broken["error"]
    assert "accuracy" in hopeless["error"]
    release = lora["result"]["release"]
    assert (release["split"], release["registered"]) == ("test", False)
    adapter = adapter_file.read(out / "lora" / "adapter.safetensors")
    assert (adapter.manifest.kind, adapter.digest) == ("lora", release["digest"])
    measured = json.loads(_invoke("evaluate", out / "lora", "--data", csv, "--json").stdout)
    assert measured["metrics"] == pytest.approx(release["metrics"])
    assert first["result"]["validation"] == first["result"]["release"]["metrics"]

    alone = tmp_path / "alone"
    flags = ["--max-steps", 3, "--max-length", 32, "--batch-size", 8, "--rank", 2]
    _invoke("train", "--backbone", backbone_directory, "--data", csv, *flags, "--out", alone)
    _invoke("merge", alone, "--out", tmp_path / "alone.safetensors")
    same = adapter_file.read(tmp_path / "alone.safetensors").digest
    assert first["result"]["release"]["digest"] == same, "a sweep's task is the training that its flags make"

    again = _invoke("sweep", file, "--out", out)
    assert again.exit_code == 1
    assert again.stdout.count("finished before") == 2
    plan = json.loads(_invoke("sweep", file, "--out", out, "--dry-run", "--json").stdout)["plan"]
    assert [item["state"] for item in plan] == ["finished", "failed", "finished", "rejected"]


def test_changed_rows_are_trained_on_once_the_old_run_is_gone(
    tmp_path: Path, backbone_directory: Path, colours: TaskData
) -> None:
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    lines = ["sentence\tlabel", *(f"{e.text}\t{number % 2}" for number, e in enumerate(colours.examples))]
    (folder / "train.tsv").write_text("\n".join(lines))
    (folder / "dev.tsv").write_text("\n".join(lines[:9]))
    file = _toml(
        tmp_path,
        f"""
        [[task]]
        name = "sst2"
        backbone = "{backbone_directory}"
        data = "glue:sst2={folder.parent}"
        max-steps = 1
        max-length = 32
        """,
    )
    out = tmp_path / "out"

    def sweep() -> dict[str, Any]:
        (entry,) = json.loads(_invoke("sweep", file, "--out", out, "--json").stdout)["tasks"]
        return dict(entry)

    assert sweep()["result"]["release"]["rows"] == 8
    assert sweep()["skipped"]
    (folder / "dev.tsv").write_text("\n".join(lines[:7]))
    measured = sweep()
    assert (measured["state"], measured["skipped"], measured["result"]["release"]["rows"]) == ("finished", False, 6)
    (folder / "train.tsv").write_text("\n".join(lines[:-1]))
    plan = json.loads(_invoke("sweep", file, "--out", out, "--dry-run", "--json").stdout)["plan"]
    assert [item["state"] for item in plan] == ["changed"]
    refused = sweep()
    assert refused["state"] == "failed"
    assert refused["error"].startswith(f"the rows to train on have changed since {out / 'sst2'} was begun: remove")
    shutil.rmtree(out / "sst2")
    trained = sweep()
    assert (trained["state"], trained["result"]["rows"]) == ("finished", len(lines) - 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max-steps = 3", 'max-steps = "3"'), "max-steps must be an integer"),
        (("rank = 2", "rank = 0"), "first: rank must be in 1..1024"),
        (('method = "lora"', 'method = "prefix"'), "lora: method must be one of"),
        (('split = "test"', 'split = "train"'), "lora: an adapter is judged on validation or test"),
        (("accuracy>=1.5", "accuracy>1"), "hopeless: a gate is"),
        (("rank = 2", "resume = true"), "unknown key 'resume'"),
        (("rank = 2", 'push = "x"'), "unknown key 'push'"),
        (("backbone = ", "pooling = "), "Missing option"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_trained(
    change: tuple[str, str], message: str, file: Path, tmp_path: Path
) -> None:
    file.write_text(file.read_text().replace(*change))
    result = _invoke("sweep", file, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_method_alone_knows_no_server() -> None:
    program = "import sys\nfrom adamix.cli import app\ntry:\n    app()\nfinally:\n    print('grpc' in sys.modules)"
    command = [sys.executable, "-c", program, "train", "--backbone", "x", "--data", "y", "--out", "z"]
    push = ["--push", "127.0.0.1:1", "--task", "t"]
    done = subprocess.run([*command, *push], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "--push needs adamix_server" in done.stderr


def test_a_sweep_is_one_process(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = _invoke("sweep", file, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "a sweep is one process" in result.stderr


def test_ctrl_c_in_a_training_leaves_a_checkpoint_and_the_result_is_the_same(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = file.read_text().partition("[[task]]")[0].replace("max-steps = 3", "max-steps = 20")
    file.write_text(text + '[[task]]\nname = "long"\n[[task]]\nname = "next"\n')
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        on_step_end = StepWatch.on_step_end

        def interrupt(self: StepWatch, args: Any, state: Any, control: Any, **more: Any) -> Any:
            if state.global_step == 5:
                signal.raise_signal(signal.SIGINT)
            return on_step_end(self, args, state, control, **more)

        patch.setattr(StepWatch, "on_step_end", interrupt)
        stopped = _invoke("sweep", file, "--out", out, "--json")
    assert stopped.exit_code == 130
    assert json.loads(stopped.stdout)["left"] == 2
    assert "long: stopped after step 5 of 20; the same command goes on from there" in " ".join(stopped.stderr.split())
    assert json.loads((out / "sweep.json").read_text())["tasks"][0]["state"] == "interrupted"
    assert _invoke("sweep", file, "--out", out).exit_code == 0
    first, second = ((out / name / "adapter.safetensors").read_bytes() for name in ("long", "next"))
    assert first == second, "equal settings, one of them interrupted"
