"""Text for the methods that look at data: which rows, in which batches, through which experts.

Knows the backbone and the mixture's experts; what is read off a forward pass is the caller's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import GenerationData, TaskData, TaskType
from adamix.errors import InvalidData
from adamix.evaluation.labelled import LabelledRows, label_rows
from adamix.files import adapter_file
from adamix.files.mixture_file import MixtureFile, Projection
from adamix.generation.likelihood import language_model, read_references
from adamix.merging.rules import combine, uniform
from adamix.merging.settings import MergeConfig
from adamix.modules.attach import attach
from adamix.modules.heads import LanguageModel, TaskModel
from adamix.rows.order import Rows
from adamix.rows.targets import TargetRows

# (rows done, rows in all), or steps for a method that makes steps.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Samples:
    """Labelled text or sources with reference texts, with the backbone and the tokenizer that read it."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerFast
    data: TaskData | GenerationData

    @property
    def loss_type(self) -> TaskType:
        """What logits are compared with; those of a language model are rows of a classification, one for each token."""
        return self.data.task_type if isinstance(self.data, TaskData) else "classification"

    @property
    def device(self) -> torch.device:
        return next(self.backbone.model.parameters()).device

    def limited(self, config: MergeConfig) -> "Samples":
        """At most `max_rows` rows, or sources with all their references, drawn by the seed; their order stays."""
        examples = self.data.examples
        if len(examples) <= config.max_rows:
            return self
        generator = torch.Generator().manual_seed(config.seed)
        chosen = torch.randperm(len(examples), generator=generator)[: config.max_rows].sort().values.tolist()
        kept: Any = tuple(examples[index] for index in chosen)
        return replace(self, data=replace(self.data, examples=kept))

    def labelled_rows(self, mixture: MixtureFile) -> LabelledRows:
        """The rows as the mixture's adapter reads them, and its labels; raises as `labelled.evaluate` does."""
        if not isinstance(self.data, TaskData):
            raise InvalidData(f"{self.data.name} has texts to generate, but the adapter is for labels")
        return label_rows(mixture.manifest.adapter, self.backbone, self.tokenizer, self.data)

    def rows(self, mixture: MixtureFile) -> Rows | TargetRows:
        """The rows as the mixture's adapter reads them, with its targets: of a language model one for each reference.

        Raises:
            InvalidData: they are for another task, have labels that the head does not know, or there are none.
            FailedPrecondition: the head has nothing to compare with labels or texts.
        """
        manifest = mixture.manifest.adapter
        if manifest.head.type != "causal_lm":
            labelled = self.labelled_rows(mixture)
            return Rows(labelled.tokens, torch.from_numpy(labelled.targets), labelled.pad_id)
        if not isinstance(self.data, GenerationData):
            raise InvalidData(f"{self.data.name} has labels, but the adapter generates texts")
        return read_references(self.tokenizer, self.data, manifest.max_length).rows


class Observer(Protocol):
    """What sees the inputs and outputs of one projection while its experts run, one after the other."""

    def see(self, expert: int, x: Tensor, y: Tensor, mask: Tensor) -> None:
        """One call of one expert.

        Args:
            x, y: `[N, L, in]` and `[N, L, out]`.
            mask: bool `[N, L]`, false on padding.
        """


class ExpertSweep:
    """Runs text through the experts by number: in sweep i every projection uses its expert i, a shared one its only.

    These are the M adapters of which the merged one is made. Every expert meets every row, and meets it beside the
    experts of its own number, so the order of the experts does not matter.

    Attributes:
        rows: the text, as the adapter reads it.
    """

    def __init__(self, mixture: MixtureFile, samples: Samples, observers: Mapping[str, Observer]) -> None:
        self.rows = samples.rows(mixture)
        self._num_experts = mixture.manifest.num_experts
        self._device = samples.device
        self._stage = _Stage(0, torch.empty(0))
        projections = mixture.projections()
        probes = {key: _Probe(projections[key], self._stage, observer) for key, observer in observers.items()}
        self._model = model_with(mixture, samples, probes)

    def logits(self, batch_size: int, on_progress: OnProgress) -> Iterator[tuple[list[int], Tensor]]:
        """Row numbers and logits of every batch, expert by expert: `[N, C]`, or `[T, V]` at T target tokens."""
        done, total = 0, self._num_experts * len(self.rows)
        for expert in range(self._num_experts):
            self._stage.expert = expert
            for indices, batch in self._batches(batch_size):
                self._stage.mask = batch["attention_mask"].bool()
                yield indices, self._model(**batch)
                done += len(indices)
                on_progress(done, total)

    def _batches(self, batch_size: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Row numbers and inputs of all rows, longest first, for little padding."""
        lengths = self.rows.lengths
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.rows.batch(chosen)
            del batch["targets"]
            yield chosen, {name: tensor.to(self._device) for name, tensor in batch.items()}


def model_with(mixture: MixtureFile, samples: Samples, modules: Mapping[str, nn.Module]) -> TaskModel | LanguageModel:
    """The backbone with the mixture's adapter and head, and these modules in place of these projections.

    Raises:
        InvalidAdapter: the mixture does not fit the backbone.
        FailedPrecondition: its head is the language model's, and the backbone was loaded without one.
    """
    adapter = adapter_file.decode(combine(mixture, uniform, "uniform"))
    if adapter.manifest.head.type == "causal_lm":
        return language_model(adapter, samples.backbone, modules.get)
    return attach(adapter, samples.backbone, modules.get)


def expert_tensors(projection: Projection) -> tuple[Tensor, Tensor | None]:
    """The experts' weights `[M, out, in]` and biases `[M, out]`."""
    bias = None if projection.bias is None else torch.from_numpy(projection.bias.copies)
    return torch.from_numpy(projection.weight.copies), bias


@dataclass
class _Stage:
    """Which expert is on, and for which rows."""

    expert: int
    mask: Tensor


class _Probe(nn.Module):
    weights: Tensor
    biases: Tensor | None

    def __init__(self, projection: Projection, stage: _Stage, observer: Observer) -> None:
        super().__init__()
        weights, biases = expert_tensors(projection)
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)
        self._stage, self._observer = stage, observer

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, in] -> [N, L, out]`."""
        stage = self._stage
        bias = None if self.biases is None else self.biases[stage.expert]
        y = F.linear(x, self.weights[stage.expert], bias)
        self._observer.see(stage.expert, x, y, stage.mask)
        return y
