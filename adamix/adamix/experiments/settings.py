"""Every setting of a training by the name of its flag: which field of which configuration it is, and how it is written.

The one table that a command line, a sweep's file and a recipe go by. Knows neither flags nor files, and no defaults:
those are the configurations'.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from adamix.errors import InvalidConfig
from adamix.experiments.trackers import read_trackers

Value = str | int | float | bool
"""A setting as it is written: several values of one setting as one text."""
Kind = Literal["text", "integer", "number", "switch", "texts"]
Part = Literal["plan", "adapter", "mixture", "head", "cloze", "train"]


@dataclass(frozen=True)
class Setting:
    """Where a setting belongs.

    Attributes:
        part, field: the configuration and the field of it; `plan` is `experiments.plan.Plan` itself.
        read: makes the field's value of a text that is not the value as it stands.
    """

    part: Part
    field: str
    kind: Kind = "text"
    read: Callable[[str], object] | None = None

    def of(self, written: Value) -> object:
        """The field's value. Raises InvalidConfig where a text is malformed."""
        return written if self.read is None else self.read(str(written))


def read_sites(text: str) -> tuple[str, ...]:
    """`attn_q,attn_v`; `none` is no site."""
    return () if text == "none" else tuple(site.strip() for site in text.split(","))


def read_interval(text: str) -> tuple[float, float]:
    """The two numbers of `LOW,HIGH`; which of them go together is the configuration's to check.

    Raises:
        InvalidConfig: it is something else.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidConfig(f"--clip is two numbers, as 0,5, not {text[:40]!r}", field="clip") from None
    return low, high


def _read_init(text: str) -> bool:
    if text not in ("distinct", "same"):
        raise InvalidConfig(f"--expert-init must be distinct or same, not {text!r}", field="expert_init")
    return text == "distinct"


def _read_words(text: str) -> tuple[tuple[str, str], ...]:
    """`label=word,label=word`, or a JSON object where labels have signs of these."""
    malformed = InvalidConfig(
        "--verbalizer is written label=word,label=word or as a JSON object of words by label", field="verbalizer"
    )
    if not text.startswith("{"):
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(label.strip() and separator for label, separator, _ in pairs):
            raise malformed
        return tuple((label.strip(), word.strip()) for label, _, word in pairs)
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise malformed from None
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise malformed
    return tuple(found.items())


SETTINGS: Mapping[str, Setting] = {
    "backbone": Setting("plan", "backbone"),
    "data": Setting("plan", "data"),
    "task_type": Setting("plan", "task_type"),
    "method": Setting("adapter", "kind"),
    "rank": Setting("adapter", "rank", "integer"),
    "alpha": Setting("adapter", "alpha", "number"),
    "sites": Setting("adapter", "sites", read=read_sites),
    "activation": Setting("adapter", "activation"),
    "lora_dropout": Setting("adapter", "lora_dropout", "number"),
    "experts": Setting("mixture", "num_experts", "integer"),
    "share": Setting("mixture", "share"),
    "consistency": Setting("mixture", "consistency", "number"),
    "routing_granularity": Setting("mixture", "routing_granularity"),
    "task_loss": Setting("mixture", "task_loss"),
    "expert_init": Setting("adapter", "distinct_init", read=_read_init),
    "pooling": Setting("head", "pooling"),
    "dense": Setting("head", "dense"),
    "head_dropout": Setting("head", "dropout", "number"),
    "clip": Setting("head", "clip", read=read_interval),
    "head": Setting("plan", "head"),
    "template": Setting("cloze", "template"),
    "verbalizer": Setting("cloze", "words", read=_read_words),
    "recipe": Setting("plan", "recipe"),
    "few_shot": Setting("plan", "few_shot", "integer"),
    "max_length": Setting("train", "max_length", "integer"),
    "epochs": Setting("train", "epochs", "number"),
    "max_steps": Setting("train", "max_steps", "integer"),
    "lr": Setting("train", "learning_rate", "number"),
    "batch_size": Setting("train", "batch_size", "integer"),
    "accumulation": Setting("train", "accumulation", "integer"),
    "weight_decay": Setting("train", "weight_decay", "number"),
    "warmup_ratio": Setting("train", "warmup_ratio", "number"),
    "warmup_steps": Setting("train", "warmup_steps", "integer"),
    "max_grad_norm": Setting("train", "max_grad_norm", "number"),
    "label_smoothing": Setting("train", "label_smoothing", "number"),
    "unrouted": Setting("train", "unrouted"),
    "precision": Setting("train", "precision"),
    "backbone_dropout": Setting("train", "backbone_dropout", "switch"),
    "gradient_checkpointing": Setting("train", "gradient_checkpointing", "switch"),
    "save_every": Setting("train", "save_every", "integer"),
    "seed": Setting("train", "seed", "integer"),
    "device": Setting("plan", "device"),
    "validate": Setting("plan", "validate", "switch"),
    "report_to": Setting("plan", "report_to", read=read_trackers),
}
# Settings that mean the same thing in two ways: one that is given takes the place of the other one of a recipe.
ALTERNATIVES: Mapping[str, str] = {"epochs": "max_steps", "warmup_steps": "warmup_ratio"}
# Of a plain head; a cloze head has none of these.
PLAIN_HEAD = tuple(name for name, setting in SETTINGS.items() if setting.part == "head")


def spelled(value: object) -> Any:
    """A field's value as its setting is written: the inverse of `read_sites`; all other values stand as they are."""
    return ",".join(value) if isinstance(value, tuple) else value


def flag_of(name: str) -> str:
    """The name of a setting in a flag or in a file: with hyphens."""
    return name.replace("_", "-")


@contextmanager
def named_as_settings() -> Iterator[None]:
    """An error that begins with the name of a field begins with that of its setting."""
    try:
        yield
    except InvalidConfig as error:
        field = error.field or ""
        if not field or not error.message.startswith(f"{field} "):
            raise
        name = next((name for name, setting in SETTINGS.items() if setting.field == field), field)
        raise InvalidConfig(flag_of(name) + error.message.removeprefix(field), field=field) from None
