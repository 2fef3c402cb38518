"""What RegMean needs to know about the inputs of every expert (Jin et al., arXiv 2212.09849).

Inputs are gathered while expert i of every projection runs: an up projection sees what its own down projection put out,
a down projection what the layers below with their experts i made of the text. Experts that see the same inputs, as the
down projections of the first point do, merge into their uniform mean.
"""

import torch
from torch import Tensor

from adamix.files.mixture_file import MixtureFile, Projection
from adamix.merging.rules import Moments, deviations
from adamix.merging.samples import ExpertSweep, OnProgress, Samples
from adamix.merging.settings import MergeConfig


@torch.inference_mode()
def moments(mixture: MixtureFile, samples: Samples, config: MergeConfig, on_progress: OnProgress) -> dict[str, Moments]:
    """The moments of every projection that is a mixture of several, by its key: sums over all tokens."""
    sums = {key: _Sums(p, samples.device) for key, p in mixture.projections().items() if p.num_experts > 1}
    for _ in ExpertSweep(mixture, samples, sums).logits(config.batch_size, on_progress):
        pass  # what counts happens at the projections
    return {key: each.moments() for key, each in sums.items()}


class _Sums:
    """Sums over the inputs of one projection."""

    def __init__(self, projection: Projection, device: torch.device) -> None:
        self._has_bias = projection.bias is not None
        self._deviations = torch.from_numpy(deviations(projection)).to(device)
        _, width_out, width_in = self._deviations.shape
        self._gram = self._deviations.new_zeros(width_in, width_in)
        self._cross = self._deviations.new_zeros(width_in, width_out)

    def see(self, expert: int, x: Tensor, y: Tensor, mask: Tensor) -> None:  # noqa: ARG002 - the inputs tell it all
        inputs = x[mask].double()
        if self._has_bias:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=-1)
        self._gram += inputs.T @ inputs
        self._cross += inputs.T @ (inputs @ self._deviations[expert].T)

    def moments(self) -> Moments:
        return Moments(self._gram.cpu().numpy(), self._cross.cpu().numpy())
