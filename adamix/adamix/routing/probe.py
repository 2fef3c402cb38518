"""A trained mixture of labelled text, measured by any of its routes.

A route that all rows share is one adapter, made of the experts it names; that adapter is then evaluated like any other.
Routes of their own for each text or token choose among all experts inside the forward pass. Knows neither training nor
files.

Shapes: N rows, C outputs of the head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import TaskData
from adamix.evaluation import labelled
from adamix.evaluation.labelled import DEFAULT_BATCH_SIZE, Evaluation, LabelledRows
from adamix.files.adapter_file import AdapterFile
from adamix.files.mixture_file import MixtureFile
from adamix.modules.attach import attach
from adamix.routing.choice import Granularity, Pairing, Routing
from adamix.routing.experts import ExpertPair, Experts, RouteTable
from adamix.routing.routing import average, draw_route, draw_token_routes


@dataclass
class MixtureProbe:
    """One mixture on one data set, tokenised once, to be measured by many routes.

    Attributes:
        on_rows: called after each forward pass with the number of rows it had; an ensemble passes each row repeatedly.

    Raises:
        as `labelled.evaluate`; and InvalidConfig: there is no expert of the fixed number.
    """

    mixture: MixtureFile
    backbone: Backbone
    tokenizer: PreTrainedTokenizerFast
    data: TaskData
    batch_size: int = field(default=DEFAULT_BATCH_SIZE, kw_only=True)
    on_rows: Callable[[int], None] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._path_logits: dict[ExpertPair, Tensor] = {}

    @cached_property
    def rows(self) -> LabelledRows:
        """The tokens and the targets of the data set."""
        return labelled.label_rows(self.mixture.manifest.adapter, self.backbone, self.tokenizer, self.data)

    def evaluate(self, routing: Routing, seed: int = 0) -> Evaluation:
        """Measure by one routing. Of an ensemble's mean probabilities the logits are those that have them.

        Args:
            seed: of a random routing. What is drawn depends on it, on the text (`sentence`), and on the place of a
                token in its text (`token`); on neither the batch size nor the order of the rows.
        """
        return self.judge(self.logits(routing, seed))

    def judge(self, logits: Tensor) -> Evaluation:
        """What the head decides by logits `[N, C]`."""
        return labelled.judge(self.mixture.manifest.adapter.head, logits, self.rows)

    def logits(self, routing: Routing, seed: int = 0) -> Tensor:
        """fp32 `[N, C]`, in the order of the rows."""
        experts = self._experts
        routing.check(experts.num_experts)
        if routing.mode == "merged":
            return self._predict(experts.merged())
        if routing.mode == "fixed":
            return self._along(self.paths("paired")[routing.expert])
        if routing.mode == "ensemble":
            paths = [self._along(path) for path in self.paths(routing.pairing)]
            return average(torch.stack(paths), self.rows.task_type, routing.average)
        if routing.granularity == "batch":
            return self._predict(experts.by_route(draw_route(seed, experts.num_points, experts.num_experts)))
        return self._predict_by_token(routing.granularity, seed)

    def paths(self, pairing: Pairing) -> list[ExpertPair]:
        """The distinct paths of an ensemble."""
        return self._experts.paths(pairing)

    @cached_property
    def _experts(self) -> Experts:
        return Experts(self.mixture)

    def _along(self, path: ExpertPair) -> Tensor:
        """Logits by one path through all layers, computed once."""
        if path not in self._path_logits:
            self._path_logits[path] = self._predict(self._experts.along(path))
        return self._path_logits[path]

    def _predict(self, adapter: AdapterFile) -> Tensor:
        model = attach(adapter, self.backbone)
        tokens, pad_id = self.rows.tokens, self.rows.pad_id
        return labelled.predict(model, tokens, pad_id=pad_id, batch_size=self.batch_size, on_rows=self.on_rows)

    def _predict_by_token(self, granularity: Granularity, seed: int) -> Tensor:
        table, experts = RouteTable(), self._experts
        adapter, choose = experts.choosing(table)
        model = attach(adapter, self.backbone, choose)
        tokens, pad_id = self.rows.tokens, self.rows.pad_id

        def set_routes(chosen: Sequence[int]) -> None:
            rows = [tokens[index] for index in chosen]
            table.set(draw_token_routes(seed, rows, experts.num_points, experts.num_experts, granularity))

        return labelled.predict(
            model,
            tokens,
            pad_id=pad_id,
            batch_size=self.batch_size,
            on_rows=self.on_rows,
            before_batch=set_routes,
        )
