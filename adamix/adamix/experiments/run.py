"""Carry out a plan: load what it names, train, and say what came of it.

In two steps, so that a caller can refuse in between what would be useless once it is trained. Nothing here prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from adamix.backbones import backbone
from adamix.backbones.backbone import Backbone, device_name
from adamix.data import GenerationData, TaskData
from adamix.data.named import few_rows, load_rows, type_of
from adamix.errors import InvalidData
from adamix.experiments.plan import Plan
from adamix.experiments.settings import named_as_settings
from adamix.training import train as trainer
from adamix.training.train import Callback, TrainResult


class Backbones:
    """Backbones that stay loaded, for trainings one after the other; none of them changes the weights."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str, bool], Backbone] = {}

    def load(self, name: str, device: str, *, language_model: bool) -> Backbone:
        """As `backbone.load`, at most once for the same arguments."""
        key = (name, device, language_model)
        if key not in self._loaded:
            self._loaded[key] = backbone.load(name, device=device, language_model=language_model)
        return self._loaded[key]


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to begin.

    Attributes:
        rows: those to train on.
        validation: those to measure the merged adapter on, if any.
        unvalidated: why there are none, where the plan asks for them.
    """

    plan: Plan
    rows: TaskData | GenerationData
    validation: TaskData | GenerationData | None
    unvalidated: str | None
    backbone: Backbone
    tokenizer: PreTrainedTokenizerFast


@dataclass(frozen=True)
class Finished:
    """A training that was carried out, and its result."""

    prepared: Prepared
    out: Path
    result: TrainResult

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `finite_json`."""
        rows, result = self.prepared.rows, self.result
        document: dict[str, Any] = {
            "mixture": str(result.path),
            "rows": len(rows.examples),
            "steps": result.steps,
            "seconds": round(result.seconds, 3),
            "parameters": {
                "trained": result.trained_parameters,
                "merged": result.merged_parameters,
                "head": result.head_parameters,
            },
            "validation": result.metrics,
        }
        if isinstance(rows, GenerationData):
            document["references"] = sum(len(example.references) for example in rows.examples)
            document["synthetic"] = rows.is_synthetic
        if self.prepared.plan.recipe is not None:
            document["recipe"] = self.prepared.plan.recipe.to_json()
        return document


def prepare(plan: Plan, backbones: Backbones) -> Prepared:
    """Load the rows and the backbone of a plan.

    Raises:
        InvalidConfig: the backbone is not the recipe's, or a name stands for nothing.
        InvalidData: the rows cannot be read. That there are no validation rows is no error: a small file may have none.
    """
    with named_as_settings():
        if plan.recipe is not None:
            plan.recipe.recipe.check_backbone(backbone.read_family(plan.backbone).model_type)
        rows = load_rows(plan.data, split="train", task_type=plan.task_type)
        if plan.few_shot is not None:
            rows = few_rows(rows, plan.few_shot, plan.train.seed)
        validation, unvalidated = _validation(plan, type_of(rows)) if plan.validate else (None, None)
        uses_head = plan.head.cloze is not None or isinstance(rows, GenerationData)
        loaded = backbones.load(plan.backbone, device_name(plan.device), language_model=uses_head)
        return Prepared(plan, rows, validation, unvalidated, loaded, backbone.load_tokenizer(plan.backbone))


def run(prepared: Prepared, out: Path, *, callbacks: Sequence[Callback] = (), resume: bool = False) -> Finished:
    """Train into `out`. Raises as `training.train.train`."""
    with named_as_settings():
        result = trainer.train(
            prepared.plan,
            prepared.backbone,
            prepared.tokenizer,
            prepared.rows,
            prepared.validation,
            out,
            callbacks=callbacks,
            resume=resume,
            trackers=prepared.plan.report_to,
        )
    return Finished(prepared, out, result)


def _validation(plan: Plan, task_type: str) -> tuple[TaskData | GenerationData | None, str | None]:
    """The validation split, or why there is none."""
    try:
        return load_rows(plan.data, split="validation", task_type=task_type), None
    except InvalidData as error:
        if error.reason not in ("SPLIT_MISSING", "SPLIT_EMPTY"):
            raise
        return None, error.message
