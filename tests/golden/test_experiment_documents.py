"""Documents of `sweep` and `few-shot`: what they say of every training, and what they leave in their directories."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Adamix = Callable[..., Any]
Golden = Callable[..., None]

SWEEP = """
[defaults]
backbone = "bert"
data = "colours"
max-steps = 2
max-length = 24
batch-size = 8
rank = 2
experts = 2
[[task]]
name = "first"
[[task]]
name = "lora"
method = "lora"
sites = ["attn_q", "attn_v"]
lr = 1
validate = false
split = "test"
gate = "accuracy>=0"
[[task]]
name = "recipe"
recipe = "glue-bert-base"
[[task]]
name = "broken"
data = "none.csv"
[[task]]
name = "hopeless"
gate = ["accuracy>=1.5", "macro_f1>=1.5"]
"""


def test_a_sweep(adamix: Adamix, place: Path, golden: Golden) -> None:
    """Before, while and after; by JSON and as people read it."""
    (place / "sweep.toml").write_text(SWEEP)
    sweep = ("sweep", "sweep.toml", "--out", "sweep")
    golden("sweep-plan.json", json.loads(adamix(*sweep, "--dry-run", "--json").stdout))
    result = adamix(*sweep, "--json")
    assert result.exit_code == 1, result.stderr
    golden("sweep.json", json.loads(result.stdout))
    golden("sweep-ledger.json", json.loads((place / "sweep" / "sweep.json").read_text()))
    golden("sweep-run-recipe.json", json.loads((place / "sweep" / "recipe" / "run.json").read_text()))
    golden("sweep-progress.txt", _without_bars(result.stderr))
    again = adamix(*sweep)
    assert again.exit_code == 1
    golden("sweep-again.txt", again.stdout)
    golden("sweep-plan-again.txt", adamix(*sweep, "--dry-run").stdout)


FEW_SHOT = ("few-shot", "--backbone", "bert", "--data", "colours", "--max-length", 24, "--rank", 2, "--experts", 2)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("few-shot", ("--k", 9, "--seeds", 2, "--max-steps", 2)),
        # What few-shot itself has for `train`'s defaults: 50 epochs, 8 rows a step.
        ("few-shot-defaults", ("--k", 3, "--seeds", 1, "--split", "validation", "--sites", "none")),
        ("few-shot-recipe", ("--k", 6, "--seeds", 1, "--recipe", "glue-bert-base", "--max-steps", 1)),
    ],
)
def test_few_shot(name: str, flags: tuple[object, ...], adamix: Adamix, place: Path, golden: Golden) -> None:
    result = adamix(*FEW_SHOT, *flags, "--out", name, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    golden(f"{name}.json", document)
    assert json.loads((place / name / "few-shot.json").read_text()) == document
    golden(f"{name}-run.json", json.loads((place / name / "seed-0" / "run.json").read_text()))
    again = adamix(*FEW_SHOT, *flags, "--out", name)
    golden(f"{name}-again.txt", _without_bars(again.stderr) + again.stdout)


def _without_bars(text: str) -> str:
    """Lines of stderr that are no progress bar."""
    return "\n".join(line for line in text.splitlines() if "━" not in line) + "\n"
