"""Documents of `train`, `merge` and `inspect`: every key, every word, every setting that a run writes down."""

import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adamix.training.loop import StepWatch

Adamix = Callable[..., Any]
Golden = Callable[..., None]

SMALL = ("--max-steps", 3, "--batch-size", 8, "--max-length", 24, "--rank", 2, "--experts", 2)
COLOURS = ("--backbone", "bert", "--data", "colours", *SMALL)
# One training of each kind; the first is merged in every way.
RUNS: dict[str, tuple[object, ...]] = {
    "classification": (*COLOURS, "--expert-init", "same"),
    "lora": (*COLOURS, "--method", "lora", "--alpha", 4, "--sites", "attn_q,attn_v", "--few-shot", 9, "--no-validate"),
    "head": (
        *("--backbone", "bert", "--data", "colours", "--epochs", 0.5, "--max-length", 24),
        *("--sites", "none", "--experts", 1, "--dense", "own", "--pooling", "cls", "--warmup-ratio", 0.5),
    ),
    "multilabel": ("--backbone", "bert", "--data", "palettes.jsonl", "--task-type", "multilabel", *SMALL),
    "regression": ("--backbone", "bert", "--data", "numbers.csv", "--task-type", "regression", "--clip", "0,4", *SMALL),
    "cloze": (
        *(
            "--backbone",
            "masked",
            "--data",
            "colours",
            "--head",
            "cloze",
            *SMALL,
            "--template",
            "{text} it was {mask} .",
        ),
        *("--verbalizer", "red=anna,green=bert,blue=carl"),
    ),
    "generation": ("--backbone", "gpt2", "--data", "likes", "--task-type", "generation", *SMALL),
    "recipe": (*COLOURS, "--recipe", "glue-bert-base", "--lr", 0.01),
    # Settings of a recipe that give way to the flags that stand for the same thing.
    "recipe-generation": (
        *("--backbone", "gpt2", "--data", "likes", "--recipe", "e2e-gpt2-medium", "--max-length", 24),
        *("--max-steps", 2, "--warmup-ratio", 0.5),
    ),
}
MERGES: dict[str, tuple[object, ...]] = {
    "uniform": (),
    "weighted": ("--weights", "3,1"),
    "learned": ("--data", "colours", "--max-rows", 10, "--steps", 2, "--lr", 0.1),
    "greedy": ("--data", "colours", "--batch-size", 4),
    "fisher": ("--data", "colours", "--max-rows", 10, "--seed", 3),
    "regmean": ("--data", "colours", "--few-shot", 9),
    "ties": ("--density", 0.5),
    "dare": ("--seed", 1),
}


@pytest.fixture(scope="module")
def trained(adamix: Adamix) -> dict[str, Any]:
    """What `train --json` said, by the name of the run, which is its directory too."""
    results = {name: adamix("train", *flags, "--out", name, "--json") for name, flags in RUNS.items()}
    assert {name: result.stderr for name, result in results.items() if result.exit_code} == {}
    return results


@pytest.mark.parametrize("name", RUNS)
def test_a_training(name: str, trained: dict[str, Any], place: Path, golden: Golden) -> None:
    """The document, and the settings that the run has written down for `--resume`."""
    golden(f"train-{name}.json", json.loads(trained[name].stdout))
    golden(f"run-{name}.json", json.loads((place / name / "run.json").read_text()))


def test_a_training_as_people_read_it(trained: dict[str, Any], adamix: Adamix, golden: Golden) -> None:
    """A finished run that is resumed says again what it made."""
    said = [adamix("train", *RUNS[name], "--out", name, "--resume").stdout for name in ("classification", "generation")]
    golden("train.txt", "\n".join(said))


def test_a_recipe_is_told(trained: dict[str, Any], golden: Golden) -> None:
    lines = [line for name in ("recipe", "recipe-generation") for line in trained[name].stderr.splitlines()]
    told = [line for line in lines if line.startswith(("recipe ", "given instead: "))]
    golden("recipe.txt", "\n".join(told), is_measured=False)


def test_all_recipes(adamix: Adamix, golden: Golden) -> None:
    golden("recipes.json", json.loads(adamix("recipes", "--json").stdout), is_measured=False)
    said = adamix("recipes").stdout + adamix("recipes", "webnlg-gpt2-medium").stdout
    golden("recipes.txt", said, is_measured=False)


def test_a_training_that_was_stopped_and_resumed(
    adamix: Adamix, place: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*COLOURS, "--max-steps", 4, "--save-every", 2)
    assert adamix("train", *flags, "--out", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        on_step_end = StepWatch.on_step_end

        def interrupt(self: StepWatch, args: Any, state: Any, control: Any, **more: Any) -> Any:
            if state.global_step == 3:
                signal.raise_signal(signal.SIGINT)
            return on_step_end(self, args, state, control, **more)

        patch.setattr(StepWatch, "on_step_end", interrupt)
        stopped = adamix("train", *flags, "--out", "resumed")
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    resumed = adamix("train", *flags, "--out", "resumed", "--resume", "--json")
    golden("train-stopped.txt", stopped.stderr[stopped.stderr.index("error: ") :])
    golden("train-resumed.json", json.loads(resumed.stdout))
    for name in ("whole", "resumed"):
        assert adamix("merge", name, "--out", f"{name}.safetensors").exit_code == 0
    assert _sha256(place / "whole.safetensors") == _sha256(place / "resumed.safetensors")


@pytest.mark.parametrize("how", MERGES)
def test_a_merge(how: str, trained: dict[str, Any], adamix: Adamix, golden: Golden) -> None:
    result = adamix("merge", "classification", "--out", f"{how}.safetensors", "--how", how, *MERGES[how], "--json")
    assert result.exit_code == 0, result.stderr
    golden(f"merge-{how}.json", json.loads(result.stdout))


def test_a_merge_as_people_read_it(trained: dict[str, Any], adamix: Adamix, golden: Golden) -> None:
    golden("merge.txt", adamix("merge", "classification", "--out", "shown.safetensors").stdout)


@pytest.fixture(scope="module")
def merged(trained: dict[str, Any], adamix: Adamix, place: Path) -> dict[str, Path]:
    """The adapter files of all runs, merged uniformly."""
    files = {name: place / f"{name}-merged.safetensors" for name in RUNS}
    codes = {name: adamix("merge", name, "--out", file.name).exit_code for name, file in files.items()}
    assert codes == dict.fromkeys(RUNS, 0)
    return files


@pytest.mark.parametrize("name", RUNS)
def test_an_adapter_that_is_looked_at(name: str, merged: dict[str, Path], adamix: Adamix, golden: Golden) -> None:
    golden(f"inspect-{name}.json", json.loads(adamix("inspect", merged[name].name, "--json").stdout))
    golden(f"inspect-{name}.txt", adamix("inspect", merged[name].name).stdout)


def test_the_tensors_of_every_adapter(merged: dict[str, Path], golden: Golden) -> None:
    """Names in order of the file, dtypes and shapes: the bytes without the floats."""
    golden("tensors.json", {name: _tensors(path) for name, path in merged.items()})


@pytest.mark.long
def test_the_bytes_of_every_training(tmp_path: Path, golden: Golden, is_writing: bool) -> None:
    """Equal in every process with as many threads, but not on every processor.

    The products of matrices are summed in another order where vector units are wider. So the digests hold on the
    machine that they were written on; elsewhere the structure is what is compared, by the tests above. In a process of
    its own with two threads, since with one LoRA's products are summed otherwise, and tests that ran before may have
    changed that.
    """
    if not is_writing:
        machine = json.loads((Path(__file__).parent / "documents" / "bytes.json").read_text())["machine"]
        if machine != _machine():
            pytest.skip(f"the digests are those of {machine}, and this is {_machine()}")
    alone = ("-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'alone'}")
    trains_all = f"{__file__}::{test_the_tensors_of_every_adapter.__name__}"
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, *alone, trains_all], env=environment, check=True, capture_output=True)
    place = tmp_path / "alone" / "golden0"
    mixtures = {name: _sha256(place / name / "mixture.safetensors") for name in RUNS}
    adapters = {name: _sha256(place / f"{name}-merged.safetensors") for name in RUNS}
    golden("bytes.json", {"machine": _machine(), "mixture": mixtures, "adapter": adapters}, is_measured=False)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tensors(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: f"{entry['dtype']} {entry['shape']}" for name, entry in header.items() if name != "__metadata__"}


def _machine() -> dict[str, str]:
    """What the order of a sum depends on."""
    cpu: dict[str, str] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "torch": torch.__version__,
        "processor": " ".join(cpu.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")).strip()
        or platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }
