"""The bare matrix products of a backbone: its own linear modules on as many rows as a batch has tokens, nothing else.

No attention, norm, activation, embedding or sum: what is left of a forward pass when everything but the projections
costs nothing. The modules are the stock ones, with their own weights and biases, in the order of the layers.
"""

from collections.abc import Sequence

import torch
from torch import nn

from adamix.backbones.backbone import Backbone
from adamix.errors import InvalidConfig


class BareProducts:
    """The linear modules of every layer, and inputs of the right widths. Raises InvalidConfig where there are none."""

    def __init__(self, backbone: Backbone, most_tokens: int) -> None:
        layers = backbone.model.get_submodule(backbone.family.layers)
        self._linears = [module for module in layers.modules() if isinstance(module, nn.Linear)]
        if not self._linears:
            raise InvalidConfig("this backbone has no stock linear modules to take the products of", field="backbone")
        generator = torch.Generator().manual_seed(0)
        widths = {linear.in_features for linear in self._linears}
        self._inputs = {width: torch.randn(1, most_tokens, width, generator=generator) for width in widths}

    @torch.inference_mode()
    def run(self, batch_tokens: Sequence[int]) -> None:
        """One pass per batch, each of so many rows."""
        for tokens in batch_tokens:
            for linear in self._linears:
                linear(self._inputs[linear.in_features][:, :tokens])
