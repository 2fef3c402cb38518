"""What a mixture becomes by a route: one adapter, or linears that choose among all experts as the rows pass.

Knows neither data nor heads, and draws nothing: routes are given.

Shapes: N rows, L tokens, P points (layer x site), M experts.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import SITES
from adamix.files.mixture_file import MixtureFile, Projection, merged_key
from adamix.files.tensors import TensorData
from adamix.merging.merge import merge
from adamix.modules.mixture import DOWN, UP
from adamix.routing.choice import Pairing

ExpertPair = tuple[int, int]
"""The expert of every down projection and that of every up projection."""


class RouteTable:
    """The routes of the forward pass that runs now, int64 `[N, L, P, 2]`, or `[P, 2]` of one that all tokens share."""

    def __init__(self) -> None:
        self._routes = torch.empty(0, 2, dtype=torch.int64)

    def set(self, routes: NDArray[np.int64]) -> None:
        self._routes = torch.from_numpy(routes)

    def experts(self, point: int, side: int) -> Tensor:
        """int64 `[N*L]`, or `[1]`."""
        return self._routes[..., point, side].reshape(-1)


class ChosenLinear(nn.Module):
    """A linear in M copies, of which each token uses the one its route names: `[N, L, in] -> [N, L, out]`."""

    def __init__(self, projection: Projection, routes: RouteTable, point: int, side: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(projection.weight.copies))
        bias = None if projection.bias is None else torch.from_numpy(projection.bias.copies)
        self.register_buffer("bias", bias)
        self._routes, self._point, self._side = routes, point, side

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        experts = self._routes.experts(self._point, self._side)
        if len(experts) == 1:
            return self._apply_expert(x, int(experts))
        tokens, experts = x.reshape(-1, x.shape[-1]), experts.to(x.device)
        y = tokens.new_empty(len(tokens), self.weight.shape[1])
        for expert in range(len(self.weight)):
            chosen = (experts == expert).nonzero().squeeze(1)
            y[chosen] = self._apply_expert(tokens[chosen], expert)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def _apply_expert(self, x: Tensor, expert: int) -> Tensor:
        return F.linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])


class Experts:
    """The experts of a mixture, to be put together by routes."""

    def __init__(self, mixture: MixtureFile) -> None:
        self._mixture = mixture

    @property
    def num_experts(self) -> int:
        return self._mixture.manifest.num_experts

    @property
    def num_points(self) -> int:
        return len(self._points)

    def paths(self, pairing: Pairing) -> list[ExpertPair]:
        """The distinct paths of an ensemble: with a shared projection all pairs are no more than the M paired ones."""
        share = self._mixture.manifest.share
        downs, ups = (range(1 if share == side else self.num_experts) for side in ("down", "up"))
        if pairing == "all":
            return [(down, up) for down in downs for up in ups]
        return sorted({(min(i, len(downs) - 1), min(i, len(ups) - 1)) for i in range(self.num_experts)})

    def merged(self) -> AdapterFile:
        """The adapter of all experts: what is served."""
        return adapter_file.decode(merge(self._mixture))

    def along(self, path: ExpertPair) -> AdapterFile:
        """The adapter of one path through all layers."""
        return self.by_route(self.route_of(path))

    def route_of(self, path: ExpertPair) -> NDArray[np.int64]:
        """A path as a route `[P, 2]`."""
        return np.tile(np.array(path, dtype=np.int64), (self.num_points, 1))

    def by_route(self, route: NDArray[np.int64]) -> AdapterFile:
        """The adapter made of one expert for each projection: route `[P, 2]`."""
        tensors = self._mixture.head()
        for key, projection in self._projections.items():
            place, side = self._place(key)
            expert = 0 if projection.num_experts == 1 else int(route[place, side])
            for part, stack in (("weight", projection.weight), ("bias", projection.bias)):
                if stack is not None:
                    tensors[merged_key(key, part)] = TensorData.from_float32(stack.copies[expert])
        return adapter_file.decode(adapter_file.encode(self._mixture.manifest.adapter, tensors))

    def choosing(self, routes: RouteTable) -> tuple[AdapterFile, Callable[[str, nn.Linear], nn.Module]]:
        """An adapter, and what replaces its linears (`modules.attach.attach`), so that they follow a table of routes.

        Of the adapter the structure counts, which is that of any path: the sites there are, and the head.
        """

        def choose(key: str, linear: nn.Linear) -> nn.Module:
            projection = self._projections[key]
            return linear if projection.num_experts == 1 else ChosenLinear(projection, routes, *self._place(key))

        return self.along((0, 0)), choose

    @cached_property
    def _projections(self) -> dict[str, Projection]:
        return self._mixture.projections()

    @cached_property
    def _points(self) -> dict[str, int]:
        """The place in a route of each `layers.{i}.{site}`: by layers, then as in the table of sites."""

        def order(point: str) -> tuple[int, int]:
            _, layer, site = point.split(".")
            return int(layer), SITES.index(site)

        points = sorted({key.rpartition(".")[0] for key in self._projections}, key=order)
        return {point: place for place, point in enumerate(points)}

    def _place(self, key: str) -> tuple[int, int]:
        """Point and side of a projection."""
        point, _, name = key.rpartition(".")
        return self._points[point], DOWN if name in ("down_proj", "lora_A") else UP
