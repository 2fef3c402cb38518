"""What `train`, `sweep` and `few-shot` take, by their help, and what they say of mistakes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Adamix = Callable[..., Any]
Golden = Callable[..., None]

TRAIN = "train --backbone bert --data colours --out mistaken"
FEW_SHOT = "few-shot --backbone bert --data colours --out mistaken"
MISTAKES = [
    "train --backbone bert --data colours",
    "train --data colours --out mistaken",
    f"{TRAIN} --epochs 1 --max-steps 1",
    f"{TRAIN} --warmup-steps 1 --warmup-ratio 0.5",
    f"{TRAIN} --sites mlp_output",
    f"{TRAIN} --sites attn_q,attn_q",
    f"{TRAIN} --method prefix",
    f"{TRAIN} --method lora --activation relu",
    f"{TRAIN} --recipe nothing",
    f"{TRAIN} --recipe e2e-gpt2-medium",
    f"{TRAIN} --recipe glue-bert-base --epochs 1 --max-steps 2",
    f"{TRAIN} --rank 0",
    f"{TRAIN} --rank two",
    f"{TRAIN} --lr nan",
    f"{TRAIN} --experts 0",
    f"{TRAIN} --head-dropout 1",
    f"{TRAIN} --share both",
    f"{TRAIN} --pooling max",
    f"{TRAIN} --precision fp8",
    f"{TRAIN} --expert-init equal",
    f"{TRAIN} --task-type gen",
    f"{TRAIN} --device tpu",
    f"{TRAIN} --few-shot 1",
    f"{TRAIN} --clip 5,0",
    f"{TRAIN} --clip wide",
    f"{TRAIN} --head open",
    f"{TRAIN} --template {{text}}",
    f"{TRAIN} --head cloze --pooling cls",
    f"{TRAIN} --head cloze --verbalizer red",
    f"{TRAIN} --no-such-flag",
    f"{TRAIN} --task x",
    f"{TRAIN} --gate accuracy>=0",
    f"{TRAIN} --push-split test",
    f"{TRAIN} --push 127.0.0.1:1",
    f"{TRAIN} --push nowhere --task x",
    f"{TRAIN} --push 127.0.0.1:1 --task a/b",
    f"{TRAIN} --push 127.0.0.1:1 --task x --gate accuracy",
    f"{TRAIN} --push 127.0.0.1:1 --task x",
    "train --backbone bert --data none.csv --out mistaken",
    f"{FEW_SHOT} --seed 3",
    f"{FEW_SHOT} --few-shot=10",
    f"{FEW_SHOT} --no-validate",
    f"{FEW_SHOT} --split train",
    f"{FEW_SHOT} --activation sine",
    f"{FEW_SHOT} --lr 20",
    f"{FEW_SHOT} --no-such-flag",
    f"{FEW_SHOT} --rank two",
    f"{FEW_SHOT} --recipe nothing",
    f"{FEW_SHOT} --push 127.0.0.1:1",
    f"{FEW_SHOT} --epochs 1 --max-steps 1",
    f"{FEW_SHOT} --k 0",
    f"{FEW_SHOT} surplus",
    "few-shot --backbone bert --out mistaken",
]
# What stands in a sweep's table besides its name.
MISTAKES_IN_FILES = [
    "",
    "max_steps = 1",
    "max-steps = 1.5",
    "lr = '1'",
    "lr = 20",
    "validate = 1",
    "rank = 0",
    "epochs = 1\nmax-steps = 1",
    "method = 'prefix'",
    "sites = ['mlp_output']",
    "sites = 'none'\nsplit = 'train'",
    "gate = 'accuracy>1'",
    "recipe = 'nothing'",
    "expert-init = 'equal'",
    "head-dropout = 1",
    "out = 'x'",
    "resume = true",
    "push = 'x'",
    "few-shot = 'all'",
]


@pytest.mark.parametrize("command", ["train", "sweep", "few-shot", "merge", "inspect", "recipes"])
def test_help(command: str, adamix: Adamix, golden: Golden) -> None:
    golden(f"help-{command}.txt", adamix(command, "--help").stdout, is_measured=False)


def test_mistakes(adamix: Adamix, place: Path, golden: Golden) -> None:
    said = [_said(f"adamix {command}", adamix(*command.split())) for command in MISTAKES]
    golden("mistakes.txt", "\n".join(said), is_measured=False)
    assert not (place / "mistaken").exists()


def test_mistakes_in_a_sweep(adamix: Adamix, place: Path, golden: Golden) -> None:
    said = []
    for text in MISTAKES_IN_FILES:
        given = "" if text in ("", "sites = ['mlp_output']") else "backbone = 'bert'\ndata = 'colours'\n"
        (place / "mistaken.toml").write_text(f"[[task]]\nname = 'a'\n{given}{text}\n")
        said.append(_said(text, adamix("sweep", "mistaken.toml", "--out", "mistaken")))
    said.append(_said("adamix sweep none.toml", adamix("sweep", "none.toml", "--out", "mistaken")))
    said.append(
        _said("adamix sweep --push nowhere", adamix("sweep", "mistaken.toml", "--out", "x", "--push", "nowhere"))
    )
    golden("mistakes-in-a-sweep.txt", "\n".join(said), is_measured=False)
    assert not (place / "mistaken").exists()


def _said(what: str, result: Any) -> str:
    assert result.stdout == "", what
    # What gRPC says of a port where nobody listens is not ours.
    error = re.sub(r"(no server answers at \S+:) .*", r"\1 <why>", result.stderr)
    return f"{what}\nexit code {result.exit_code}\n{error}"
