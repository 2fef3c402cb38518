"""What no form on these products can beat: a workload's matrix products alone, packed and in fp32, step by step."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from adamix.backbones.backbone import Backbone
from adamix_bench.generation.in_process import StepSize, own_copy
from adamix_bench.generation.turns import Texts
from adamix_bench.generation.workload import Workload
from adamix_kernels.frozen_linear import FrozenLinear, padded_step_rows
from adamix_server.engine.frozen_decoder import freeze_decoder


class Floor:
    def __init__(self, backbone: Backbone) -> None:
        own = own_copy(backbone)
        head = cast("nn.Module", own.lm_head)
        frozen = freeze_decoder(own.model, head, own.family, deterministic=False, quantize="none")
        self._linears = [module for module in own.model.modules() if isinstance(module, FrozenLinear | nn.Linear)]
        self._head = frozen.head
        self._hidden_size = own.spec.hidden_size
        self._rows: dict[tuple[int, int], Tensor] = {}

    @torch.inference_mode()
    def run(self, workload: Workload, steps: Sequence[StepSize]) -> Texts:
        """The products of these steps; the texts are of the right length and say nothing."""
        for step in steps:
            rows = padded_step_rows(step.tokens)
            for linear in self._linears:
                linear(self._input(rows, linear.in_features))
            if step.texts:
                self._head(self._input(padded_step_rows(step.texts), self._hidden_size))
        return [range(count) for count in workload.new_tokens]

    def _input(self, rows: int, width: int) -> Tensor:
        if (rows, width) not in self._rows:
            self._rows[rows, width] = torch.randn(1, rows, width)
        return self._rows[rows, width]
