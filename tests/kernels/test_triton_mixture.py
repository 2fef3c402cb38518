"""A mixture's modules with kernels behind them: a training step has the gradients it has without."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adamix.backbones.backbone import Backbone
from adamix.config import AdapterConfig, MixtureConfig
from adamix.modules.bottleneck import BottleneckAtLinear
from adamix.modules.lora import LoraAtLinear
from adamix.modules.mixture import DOWN, UP, ExpertLinear, Mixture, RoutedBottleneck, RoutedLora, RouteTable
from adamix_kernels import dispatch
from adamix_kernels.gpu import ops


def routed_sides() -> tuple[ExpertLinear, ExpertLinear]:
    """Down and up of three experts, 32 -> 8 -> 32, in two passes: experts 0 and 1 down, and 2 twice up."""
    routes = RouteTable()
    routes.set(torch.tensor([[[0, 2]], [[1, 2]]]))
    torch.manual_seed(0)
    down, up = (
        ExpertLinear(*widths, 3, bias=False, routes=routes, point=0, side=side)
        for side, *widths in ((DOWN, 32, 8), (UP, 8, 32))
    )
    for weight in (*down.weights, *up.weights):
        nn.init.normal_(weight, std=0.3)
    return down, up


def gradients_by_implementation(
    model: nn.Module, forward: Callable[[], Tensor], device: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, tuple[Tensor | None, Tensor | None]]]:
    """How often kernels were launched forward, and the (kernels', reference's) gradients of all trained parameters."""
    launches, adapt = [], ops.adapt

    def spy(*args: object) -> Tensor:
        launches.append(args)
        return adapt(*args)

    monkeypatch.setattr(ops, "adapt", spy)
    found: dict[str, list[Tensor | None]] = {}
    for implementation in ("triton", "reference"):
        monkeypatch.setitem(dispatch._ORDER_ON_DEVICE, device, (implementation,))
        model.zero_grad()
        torch.manual_seed(1)  # for dropout
        forward().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                found.setdefault(name, []).append(None if parameter.grad is None else parameter.grad.cpu().clone())
    return len(launches), {name: (kernels, plain) for name, (kernels, plain) in found.items()}


def assert_same_gradients(found: dict[str, tuple[Tensor | None, Tensor | None]]) -> None:
    """Equal up to the order of sums in fp32, which differs through a whole model; the same parameters have none."""
    for name, (kernels, plain) in found.items():
        assert (kernels is None) == (plain is None), name
        if kernels is not None and plain is not None:
            torch.testing.assert_close(
                kernels, plain, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("granularity", ["batch", "instance"])
@pytest.mark.parametrize(
    "adapter",
    [
        AdapterConfig(rank=4, sites=("attn_out", "mlp_norm")),
        AdapterConfig(kind="lora", rank=4, alpha=8.0, sites=("attn_q", "mlp_in"), lora_dropout=0.25),
    ],
    ids=["bottleneck", "lora"],
)
def test_a_mixture_trains_with_one_launch_a_point(
    adapter: AdapterConfig,
    granularity: str,
    make_backbone: Callable[[], Backbone],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = make_backbone().model
    config = MixtureConfig(num_experts=3, share="none", routing_granularity=granularity)
    experts = Mixture(body, adapter, config, torch.Generator().manual_seed(0))
    for _, projection in experts.projections():
        for weight in projection.weights:
            nn.init.normal_(weight, std=0.2)
    body.to(device).train()
    routes = experts.draw_routes(torch.Generator().manual_seed(3), 3)
    ids = (torch.arange(2 * 3 * 5, device=device) % 60).view(6, 5)

    def loss() -> Tensor:
        experts.set_routes(routes)
        hidden: Tensor = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden.square().mean() + hidden[..., 0].mean()

    launches, found = gradients_by_implementation(body, loss, device, monkeypatch)
    assert launches == experts.num_points == 4
    assert_same_gradients(found)
    assert granularity == "instance" or any(kernels is None for kernels, _ in found.values())


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_a_column_window_of_a_fused_projection(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    down, up = routed_sides()
    fused = nn.Linear(32, 96)
    adapters = {
        "bottleneck": lambda: BottleneckAtLinear(fused, RoutedBottleneck(down, up, "relu", 0.5), (32, 64)),
        "lora": lambda: LoraAtLinear(fused, RoutedLora(down, up, 2.0), (32, 64)),
    }
    point, x = adapters[kind]().to(device), torch.randn(4, 3, 32, device=device)
    launches, found = gradients_by_implementation(point, lambda: point(x).square().sum(), device, monkeypatch)
    assert launches == 1
    assert_same_gradients(found)


def test_a_recomputed_forward_has_the_same_gradients(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    down, up = routed_sides()
    adapter = RoutedBottleneck(down, up, "gelu", 1.0).to(device)
    x = torch.randn(4, 3, 32, device=device, requires_grad=True)

    def forward() -> Tensor:
        y: Tensor = checkpoint(adapter, x, x, use_reentrant=False)
        return y.square().sum()

    launches, found = gradients_by_implementation(adapter, forward, device, monkeypatch)
    assert launches == 2
    assert_same_gradients(found)
