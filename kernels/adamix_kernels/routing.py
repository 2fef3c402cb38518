"""A projection in several copies, and which copy each group of rows uses: what stochastic routing asks of the ops.

Knows no Triton and no devices.

Shapes: M experts, G groups of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class RoutedProjection:
    """`y[g] = x[g] W[experts[g]]^T + b[experts[g]]` for each group g of rows (AdaMix, section 3.1).

    Attributes:
        weights: M of them, [out, in] each, as `torch.nn.Linear` keeps them.
        biases: M of them, [out] each, or None.
        experts: the expert of each of the G groups, on the host: its values choose which weights are read.

    Raises:
        ValueError: there is no weight, the number of biases is another, or an expert does not exist.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor] | None
    experts: Sequence[int]

    def __post_init__(self) -> None:
        if not self.weights or (self.biases is not None and len(self.biases) != len(self.weights)):
            raise ValueError("a routed projection needs at least one weight, and as many biases or none")
        if self.experts and not 0 <= min(self.experts) <= max(self.experts) < len(self.weights):
            raise ValueError(f"route names an expert outside 0..{len(self.weights) - 1}")

    @property
    def out_features(self) -> int:
        return len(self.weights[0])

    @property
    def in_features(self) -> int:
        return self.weights[0].shape[1]
