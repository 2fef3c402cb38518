"""What a run trains on, in the terms of the trainer: one class for each form of data.

A `TrainingTask` knows the rows, the head on top of the body, and how the merged adapter is measured. The trainer knows
everything else, and asks.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.config import HeadConfig
from adamix.data import GenerationData, TaskData, TaskType
from adamix.errors import InvalidConfig, InvalidData
from adamix.evaluation import labelled
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import HeadSpec
from adamix.generation import beam_search
from adamix.modules.heads import ClozeHead, Head, LanguageModel, TaskModel, describe_head, shared_copy
from adamix.rows import cloze
from adamix.rows.labelled import target_tensor, tokenize
from adamix.rows.order import Rows
from adamix.rows.targets import TargetRows, target_rows


class TrainingTask(Protocol):
    """The data of one run.

    Attributes:
        data: the rows as they were read.
        loss_type: what the logits are compared with; those of a language model are rows of a classification.
        num_rows: of training.
        scale: (mean, deviation) by which the targets of a regression are standardised; else (0, 1).
        type_name: of the task, as `--task-type` has it.
    """

    @property
    def data(self) -> TaskData | GenerationData: ...
    @property
    def loss_type(self) -> TaskType: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def scale(self) -> tuple[float, float]: ...
    @property
    def type_name(self) -> str: ...

    def head_spec(self, head: HeadConfig) -> HeadSpec:
        """The manifest's description of the head."""

    def check(self, backbone: Backbone, head: HeadConfig, validation: object) -> None:
        """Raise InvalidConfig or InvalidData unless this can be trained on the backbone with such a head."""

    def model(
        self, body: nn.Module, backbone: Backbone, head: HeadConfig, generator: torch.Generator
    ) -> TaskModel | LanguageModel:
        """The body with the head on top, whose initial weights are drawn from the generator."""

    def rows(self, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Rows | TargetRows:
        """The rows to train on."""

    def measure(
        self, adapter: AdapterFile, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, validation: Any
    ) -> dict[str, float]:
        """Metrics of the merged adapter on other data of the same form."""

    def digest(self) -> str:
        """sha256 of the rows."""


@dataclass(frozen=True)
class LabelledTask:
    """Labelled texts: a head of its own on pooled states."""

    data: TaskData

    @property
    def loss_type(self) -> TaskType:
        return self.data.task_type

    @property
    def num_rows(self) -> int:
        return len(self.data.examples)

    @cached_property
    def scale(self) -> tuple[float, float]:
        if self.data.task_type != "regression":
            return 0.0, 1.0
        targets = target_tensor(self.data.examples, "regression", 0)
        return float(targets.mean()), float(targets.std(correction=0)) or 1.0

    @property
    def type_name(self) -> str:
        return self.data.task_type

    def head_spec(self, head: HeadConfig) -> HeadSpec:
        return describe_head(head, self.data)

    def check(self, backbone: Backbone, head: HeadConfig, validation: object) -> None:
        if validation is not None and not isinstance(validation, TaskData):
            raise InvalidData(f"{self.data.name} is labelled text, but the validation data are not")
        if head.pooling == "cls" and backbone.family.is_decoder:
            raise InvalidConfig(
                f"the first token of a {backbone.spec.model_type} sees nothing of the text: "
                "use pooling `last` or `mean`",
                field="pooling",
            )
        if head.clip is not None and self.data.task_type != "regression":
            raise InvalidConfig(
                f"clip is for regressions, and {self.data.name} is a {self.data.task_type} task", field="clip"
            )
        if head.dense == "backbone" and backbone.pooler is None:
            raise InvalidConfig(
                f"the checkpoint of {backbone.name} has no pooler: use another dense layer", field="dense"
            )

    def model(self, body: nn.Module, backbone: Backbone, head: HeadConfig, generator: torch.Generator) -> TaskModel:
        pooler = None if backbone.pooler is None else shared_copy(backbone.pooler)
        layers = Head(describe_head(head, self.data), backbone.spec.hidden_size, pooler, head.dropout)
        layers.initialise(generator)
        return TaskModel(body, layers, backbone.first_position)

    def rows(self, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Rows:
        has_types = backbone.spec.type_vocab_size > 1
        tokens = tokenize(tokenizer, self.data.examples, max_length=max_length, has_types=has_types)
        targets = target_tensor(self.data.examples, self.data.task_type, len(self.data.labels))
        if self.data.task_type == "regression":
            mean, deviation = self.scale
            targets = (targets - mean) / deviation
        return Rows(tokens, targets, tokenizer.pad_token_id or 0)

    def measure(
        self, adapter: AdapterFile, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, validation: Any
    ) -> dict[str, float]:
        return labelled.evaluate(adapter, backbone, tokenizer, validation).metrics

    def digest(self) -> str:
        return _digest([(e.text, e.pair, e.label) for e in self.data.examples])


@dataclass(frozen=True)
class ClozeTask(LabelledTask):
    """Labelled texts in a template, read by the checkpoint's own language-model head, which stays as it is."""

    spec: HeadSpec

    def head_spec(self, head: HeadConfig) -> HeadSpec:  # noqa: ARG002
        return self.spec

    def check(self, backbone: Backbone, head: HeadConfig, validation: object) -> None:
        super().check(backbone, head, validation)
        if backbone.lm_head is None:
            raise InvalidConfig(f"{backbone.name} was loaded without its language-model head, which a cloze head needs")

    def model(
        self,
        body: nn.Module,
        backbone: Backbone,
        head: HeadConfig,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> TaskModel:
        if backbone.lm_head is None:
            raise InvalidConfig(f"{backbone.name} was loaded without its language-model head")
        layers = ClozeHead(shared_copy(backbone.lm_head), self.spec.verbalizer or ())
        return TaskModel(body, layers.to(backbone.model.device), backbone.first_position)

    def rows(self, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Rows:
        has_types = backbone.spec.type_vocab_size > 1
        examples = self.data.examples
        tokens = cloze.token_rows(self.spec, tokenizer, examples, max_length=max_length, has_types=has_types)
        return Rows(tokens, target_tensor(examples, "classification", 0), tokenizer.pad_token_id or 0)


@dataclass(frozen=True)
class GenerationTask:
    """Sources and reference texts: the checkpoint's own language-model head, which stays as it is."""

    data: GenerationData

    @property
    def loss_type(self) -> TaskType:
        return "classification"

    @property
    def num_rows(self) -> int:
        return sum(len(example.references) for example in self.data.examples)

    @property
    def scale(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def type_name(self) -> str:
        return "generation"

    def head_spec(self, head: HeadConfig) -> HeadSpec:
        return describe_head(head, self.data)

    def check(self, backbone: Backbone, head: HeadConfig, validation: object) -> None:
        if validation is not None and not isinstance(validation, GenerationData):
            raise InvalidData(f"{self.data.name} is for generation, but the validation data are not")
        if not backbone.family.is_decoder:
            raise InvalidConfig(
                f"a {backbone.spec.model_type} is an encoder and generates no text: use a decoder such as gpt2",
                field="task_type",
            )
        if backbone.lm_head is None:
            raise InvalidConfig(f"{backbone.name} was loaded without its language-model head, which generation needs")
        if head != HeadConfig():
            raise InvalidConfig(
                "generation uses the backbone's language-model head as it is: leave pooling, dense and all else of a "
                "head at their defaults",
                field="head",
            )

    def model(
        self,
        body: nn.Module,
        backbone: Backbone,
        head: HeadConfig,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LanguageModel:
        if backbone.lm_head is None:
            raise InvalidConfig(f"{backbone.name} was loaded without its language-model head")
        return LanguageModel(body, shared_copy(backbone.lm_head), backbone.first_position)

    def rows(
        self,
        backbone: Backbone,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
    ) -> TargetRows:
        rows = target_rows(tokenizer, self.data.examples, max_length=max_length)
        return TargetRows(rows, tokenizer.pad_token_id or 0)

    def measure(
        self, adapter: AdapterFile, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, validation: Any
    ) -> dict[str, float]:
        return beam_search.token_metrics(adapter, backbone, tokenizer, validation)

    def digest(self) -> str:
        return _digest([(e.source, e.references) for e in self.data.examples])


def training_task(
    data: TaskData | GenerationData, head: HeadConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerFast
) -> TrainingTask:
    """The task of some data, with such a head on this backbone.

    Raises:
        InvalidConfig, InvalidData: a cloze head does not suit the data or the tokenizer (`cloze.head_spec`).
    """
    if isinstance(data, GenerationData):
        return GenerationTask(data)
    if head.cloze is None:
        return LabelledTask(data)
    spec = cloze.head_spec(head.cloze, tokenizer, data, is_decoder=backbone.family.is_decoder)
    return ClozeTask(data, spec)


def _digest(rows: list[Any]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
