"""A mixture of adaptations: M experts at every point, and stochastic routing among them (AdaMix, section 3).

Routes are data. Whoever trains draws one integer tensor for each step and sets it before the forward pass; the modules
only read it. So a recomputed forward (gradient checkpointing) sees the route of the first one, all processes of a
distributed run agree, and the state of the generator belongs to the checkpoint. In evaluation mode a projection is
the mean of its experts, computed anew in every call: what is measured is what `merge.py` will write.

Down and up routes are drawn independently, at every point and in every pass. This is what makes averaging sound:
each down expert learns to work with each up expert, so their bottleneck units share one basis. Pairing expert i with
expert i would break it.

This module does not know losses, data or files.

Shapes: P passes, L points (layer x site), B rows of a batch, M experts, G groups (P, or P*B).
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamix.backbones.sites import Point, insert
from adamix.config import AdapterConfig, MixtureConfig
from adamix.errors import FailedPrecondition
from adamix.modules.bottleneck import Bottleneck, BottleneckAtLinear, BottleneckAtNorm
from adamix.modules.lora import Lora, LoraAtLinear
from adamix_kernels import dispatch

DOWN, UP = 0, 1


class RouteTable:
    """The route that all experts of one backbone read: int64 `[P, L, 2]`, or `[P, L, 2, B]` at instance granularity.

    It lives in host memory, because the choice of weights happens there.
    """

    def __init__(self) -> None:
        self._routes: Tensor | None = None

    def set(self, routes: Tensor) -> None:
        """The routes of the forward pass that follows, and of its backward."""
        self._routes = routes

    def route(self, point: int, side: int) -> Tensor:
        """The expert of each group of rows at one point: int64 `[G]`, pass by pass."""
        if self._routes is None:
            raise FailedPrecondition("a mixture in training mode has no route: call Mixture.set_routes before forward")
        return self._routes[:, point, side].reshape(-1)


class ExpertLinear(nn.Module):
    """A linear projection in M copies, of which each group of rows uses the one its route names.

    Each copy has its own parameters, so that one without rows has no gradient (None) and the optimiser leaves it
    alone: neither momentum nor weight decay moves an expert that was not routed.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        *,
        bias: bool,
        routes: RouteTable,
        point: int,
        side: int,
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.empty(out_features, in_features) for _ in range(num_experts))
        self.biases = nn.ParameterList(torch.zeros(out_features) for _ in range(num_experts)) if bias else None
        self._routes, self._point, self._side = routes, point, side

    @property
    def num_experts(self) -> int:
        return len(self.weights)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The uniform mean over the experts: weight `[out, in]` and bias `[out]`."""
        return _mean(self.weights), None if self.biases is None else _mean(self.biases)

    def forward(self, x: Tensor) -> Tensor:
        """By the mean of the experts, `[..., in] -> [..., out]`; in training the adapter around it routes them."""
        return F.linear(x, *self.merged())

    def route(self) -> Tensor:
        """The expert of each group of rows in this forward pass: int64 `[G]`."""
        return self._routes.route(self._point, self._side)

    def routed(self, num_groups: int) -> dispatch.RoutedProjection:
        """The experts and their route over `num_groups` groups of rows; a single expert needs no route."""
        experts = [0] * num_groups if self.num_experts == 1 else self.route().tolist()
        return dispatch.RoutedProjection(
            list(self.weights), None if self.biases is None else list(self.biases), experts
        )


class RoutedBottleneck(Bottleneck):
    """A bottleneck of experts: in training all groups of rows, each with the experts of its route, are one op."""

    down: ExpertLinear
    up: ExpertLinear

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`[P*B, ..., D] -> [P*B, ..., D]` in training, rows of pass 0 first; any leading shape in evaluation."""
        if not self.training:
            return super().forward(x, residual)
        return _routed(x, residual, self.down, self.up, self.scale, self.activation)


class RoutedLora(Lora):
    """A LoRA of experts, as `RoutedBottleneck`."""

    a: ExpertLinear
    b: ExpertLinear

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`[P*B, ..., in] -> [P*B, ..., out]` in training, rows of pass 0 first; any leading shape in evaluation."""
        if not self.training:
            return super().forward(x, residual)
        # Dropout scales what it keeps, and does so in fp32; without it the op needs no copy of x.
        dropped = self.dropout(x.float()) if self.dropout.p else x
        delta = _routed(dropped, residual, self.a, self.b, self.scale, "identity")
        return delta if residual is not None else delta.to(x.dtype)


def _routed(
    x: Tensor, residual: Tensor | None, down: ExpertLinear, up: ExpertLinear, scale: float, activation: str
) -> Tensor:
    """`residual + A(x)`, or `A(x)`, with the experts of each group of rows."""
    routes = [projection.route() for projection in (down, up) if projection.num_experts > 1]
    num_groups = len(routes[0]) if routes else 1
    source = x.reshape(num_groups, -1, x.shape[-1])
    added = None
    if residual is not None:
        added = source if residual is x else residual.reshape(num_groups, -1, residual.shape[-1])
    experts = (down.routed(num_groups), up.routed(num_groups))
    y = dispatch.routed_low_rank(source, added, *experts, scale, activation)
    return y.reshape(*x.shape[:-1], y.shape[-1])


class Mixture:
    """The experts that were put into one backbone.

    Args:
        model: the body; the module at every site of every layer is replaced in place.
        adapter: what each expert is.
        config: how many, and what they share.
        generator: draws the initial weights, on the CPU.

    Raises:
        InvalidConfig: the backbone has no such site.
    """

    def __init__(
        self, model: nn.Module, adapter: AdapterConfig, config: MixtureConfig, generator: torch.Generator
    ) -> None:
        self.adapter = adapter
        self.config = config
        self._generator = generator
        self._routes = RouteTable()
        self._projections: dict[tuple[int, str], tuple[ExpertLinear, ExpertLinear]] = {}
        insert(model, adapter.sites, self._make_site)
        self._initial = {} if adapter.distinct_init else dict(self._common_start())

    @property
    def initial(self) -> dict[tuple[str, str], Tensor]:
        """Where all experts of a projection began, by (its key, `weight` or `bias`); empty with distinct starts."""
        return self._initial

    @property
    def num_points(self) -> int:
        return len(self._projections)

    def set_routes(self, routes: Tensor) -> None:
        """Set what `draw_routes` drew, for the next forward pass and its backward."""
        self._routes.set(routes)

    def draw_routes(self, generator: torch.Generator, batch_size: int) -> Tensor:
        """Routes of one forward pass over `P * batch_size` rows: uniform, int64 `[P, L, 2]` or `[P, L, 2, B]`."""
        shape: tuple[int, ...] = (self.config.passes, self.num_points, 2)
        if self.config.routing_granularity == "instance":
            shape += (batch_size,)
        routes = torch.randint(self.config.num_experts, shape, generator=generator)
        # A shared projection is a mixture of one. Its draws are made all the same, so that the other side's routes
        # do not depend on what is shared.
        if self.config.num_down == 1:
            routes[:, :, DOWN] = 0
        if self.config.num_up == 1:
            routes[:, :, UP] = 0
        return routes

    def projections(self) -> Iterator[tuple[str, ExpertLinear]]:
        """Every projection with its key in a file: `layers.{i}.{site}.down_proj`, `….lora_A`, and so on."""
        names = ("lora_A", "lora_B") if self.adapter.kind == "lora" else ("down_proj", "up_proj")
        for (layer, site), pair in self._projections.items():
            for name, projection in zip(names, pair, strict=True):
                yield f"layers.{layer}.{site}.{name}", projection

    def num_parameters(self) -> tuple[int, int]:
        """(trained, merged): parameters of all experts, and of the one adapter they become."""
        trained = merged = 0
        for _, projection in self.projections():
            size = sum(p.numel() for p in projection.parameters())
            trained += size
            merged += size // projection.num_experts
        return trained, merged

    def _common_start(self) -> Iterator[tuple[tuple[str, str], Tensor]]:
        for key, projection in self.projections():
            if projection.num_experts > 1:
                yield (key, "weight"), projection.weights[0].detach().clone()
                if projection.biases is not None:
                    yield (key, "bias"), projection.biases[0].detach().clone()

    def _make_site(self, point: Point) -> nn.Module:
        adapter, config, bias = self.adapter, self.config, self.adapter.kind == "bottleneck"
        # A bottleneck at a linear point reads the linear's output; a LoRA reads its input.
        width_in = point.in_features if adapter.kind == "lora" else point.out_features
        index = self.num_points
        down = ExpertLinear(
            width_in, adapter.rank, config.num_down, bias=bias, routes=self._routes, point=index, side=DOWN
        )
        up = ExpertLinear(
            adapter.rank, point.out_features, config.num_up, bias=bias, routes=self._routes, point=index, side=UP
        )
        self._projections[point.layer, point.site] = (down, up)
        if adapter.kind == "lora":
            self._init_lora(down, up)
            lora = RoutedLora(down, up, adapter.scale, adapter.lora_dropout)
            return LoraAtLinear(point.module, lora, point.window)
        for projection in (down, up):
            self._init_experts(
                projection, lambda w: nn.init.normal_(w, std=adapter.init_std, generator=self._generator)
            )
        bottleneck = RoutedBottleneck(down, up, adapter.activation, adapter.scale)
        if point.is_norm:
            return BottleneckAtNorm(point.module, bottleneck)
        return BottleneckAtLinear(point.module, bottleneck, point.window)

    def _init_lora(self, a: ExpertLinear, b: ExpertLinear) -> None:
        self._init_experts(a, lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5), generator=self._generator))
        self._init_experts(b, nn.init.zeros_)

    def _init_experts(self, projection: ExpertLinear, init: Callable[[Tensor], Tensor]) -> None:
        """Draw the weights of every expert, or of one and copy it to the others."""
        first, *others = projection.weights
        init(first)
        for weight in others:
            if self.adapter.distinct_init:
                init(weight)
            else:
                with torch.no_grad():
                    weight.copy_(first)


def select_rows(routes: Tensor, start: int, end: int) -> Tensor:
    """The routes of some of the rows they were drawn for: all alike at batch granularity."""
    return routes[..., start:end] if routes.dim() == 4 else routes


def _mean(experts: nn.ParameterList) -> Tensor:
    return experts[0] if len(experts) == 1 else torch.stack(list(experts)).mean(0)
