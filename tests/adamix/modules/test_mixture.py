"""Routing: what is drawn, which expert a row meets, what gets a gradient, and what evaluation mode computes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamix.backbones.backbone import Backbone
from adamix.config import AdapterConfig, MixtureConfig
from adamix.errors import FailedPrecondition, InvalidConfig
from adamix.modules.heads import recompute_activations, shared_copy
from adamix.modules.mixture import DOWN, UP, ExpertLinear, Mixture, RoutedBottleneck, RoutedLora, RouteTable


def _mixture(
    backbone: Backbone, seed: int = 0, adapter: AdapterConfig | None = None, **mixture: Any
) -> tuple[nn.Module, Mixture]:
    body = shared_copy(backbone.model)
    generator = torch.Generator().manual_seed(seed)
    experts = Mixture(body, adapter or AdapterConfig(rank=4), MixtureConfig(**mixture), generator)
    return body, experts


def _draw(experts: Mixture, seed: int = 0, batch_size: int = 4) -> Tensor:
    return experts.draw_routes(torch.Generator().manual_seed(seed), batch_size)


def _hidden(body: nn.Module, rows: int = 8) -> Tensor:
    ids = torch.arange(rows * 5).reshape(rows, 5) % 60 + 4
    hidden: Tensor = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return hidden


def _without_dropout(body: nn.Module) -> nn.Module:
    """Training mode for the experts, no dropout in the backbone."""
    body.train()
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for layer in body.encoder.layer:  # type: ignore[union-attr, operator]
        layer.attention.self.dropout.p = 0.0
    return body


def test_routes_are_one_integer_tensor_per_forward(backbone: Backbone) -> None:
    _, experts = _mixture(backbone, adapter=AdapterConfig(sites=("attn_out", "mlp_out"), rank=4), share="none")
    routes = _draw(experts)
    assert (routes.shape, routes.dtype) == ((2, 4, 2), torch.int64)
    _, experts = _mixture(backbone, share="none", routing_granularity="instance")
    assert _draw(experts, batch_size=7).shape == (2, 2, 2, 7)
    _, experts = _mixture(backbone, consistency=0.0)
    assert _draw(experts).shape == (1, 2, 2)


def test_draws_are_uniform_and_independent(backbone: Backbone) -> None:
    """Independent over pass, layer and projection: pairing down_i with up_i would make averaging meaningless."""
    _, experts = _mixture(backbone, share="none", num_experts=3)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([experts.draw_routes(generator, 4).flatten() for _ in range(9000)])
    assert draws.shape[1] == 2 * 2 * 2
    for i in range(8):
        counts = torch.bincount(draws[:, i], minlength=3)
        assert (counts - 3000).abs().max() < 200
        for j in range(i):
            pairs = torch.bincount(draws[:, i] * 3 + draws[:, j], minlength=9)
            # 1000 expected each; the standard deviation is 30.
            assert (pairs - 1000).abs().max() < 150


def test_a_shared_side_has_route_zero_and_leaves_the_other_alone(backbone: Backbone) -> None:
    free = _draw(_mixture(backbone, share="none")[1])
    up = _draw(_mixture(backbone, share="up")[1])
    down = _draw(_mixture(backbone, share="down")[1])
    assert not up[:, :, 1].any()
    assert not down[:, :, 0].any()
    assert torch.equal(up[:, :, 0], free[:, :, 0])
    assert torch.equal(down[:, :, 1], free[:, :, 1])


def test_routes_do_not_touch_the_global_generator(backbone: Backbone) -> None:
    _, experts = _mixture(backbone)
    state = torch.get_rng_state()
    _draw(experts)
    assert torch.equal(torch.get_rng_state(), state)


def _by_expert(x: Tensor, projection: ExpertLinear, experts: list[int]) -> Tensor:
    """Row by row, each by the expert that is named for it."""
    weights, biases = projection.weights, projection.biases
    rows = [F.linear(row, weights[e], None if biases is None else biases[e]) for row, e in zip(x, experts, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("share", [None, DOWN, UP])
@pytest.mark.parametrize("granularity", ["batch", "instance"])
@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_each_group_of_rows_takes_the_experts_of_its_route(kind: str, granularity: str, share: int | None) -> None:
    """Output and gradients, written out row by row: six rows in two passes. Down and up have routes of their own."""
    table = RouteTable()
    of_rows = torch.randint(3, (2, 2, 2, 3), generator=torch.Generator().manual_seed(0))
    if granularity == "batch":
        of_rows = of_rows[..., :1].expand_as(of_rows)
    table.set(of_rows[..., 0] if granularity == "batch" else of_rows)
    downs, ups = ([0] * 6 if side == share else of_rows[:, 1, side].flatten().tolist() for side in (DOWN, UP))
    assert downs != ups
    torch.manual_seed(0)
    down, up = (
        ExpertLinear(*widths, 1 if side == share else 3, bias=kind == "bottleneck", routes=table, point=1, side=side)
        for side, *widths in ((DOWN, 8, 3), (UP, 3, 8))
    )
    for parameter in (*down.parameters(), *up.parameters()):
        nn.init.normal_(parameter)
    adapter = RoutedBottleneck(down, up, "gelu", 0.5) if kind == "bottleneck" else RoutedLora(down, up, 0.5, 0.25)
    x, residual = torch.randn(6, 5, 8), torch.randn(6, 5, 8)
    for added in (None, x, residual):
        results = []
        for is_written_out in (False, True):
            torch.manual_seed(1)  # for dropout
            if is_written_out:
                rows = x if kind == "bottleneck" else F.dropout(x, 0.25)
                hidden = _by_expert(rows, down, downs)
                delta = 0.5 * _by_expert(F.gelu(hidden) if kind == "bottleneck" else hidden, up, ups)
                y = delta if added is None else added + delta
            else:
                y = adapter(x, added)
            gradients = torch.autograd.grad(y.square().sum(), list(adapter.parameters()), allow_unused=True)
            results.append((y, *gradients))
        for routed, written_out in zip(*results, strict=True):
            # None, not zeros: zeros would let momentum and weight decay move an expert without rows.
            assert (routed is None) == (written_out is None)
            if routed is not None:
                torch.testing.assert_close(routed, written_out)


def test_training_without_a_route_is_refused(backbone: Backbone) -> None:
    body, _ = _mixture(backbone)
    with pytest.raises(FailedPrecondition, match="no route"):
        _hidden(body.train())


@pytest.mark.parametrize("share", ["up", "down", "none"])
def test_evaluation_mode_is_the_mean_of_weights_and_biases(backbone: Backbone, share: str) -> None:
    """The release's level 3, written out, through the whole body; and never a stale mean."""
    body, experts = _mixture(backbone, share=share)
    with torch.no_grad():
        for _, projection in experts.projections():
            for bias in projection.biases or ():
                bias.normal_()
    for _ in range(2):
        mean_body, mean = _mixture(backbone, num_experts=1)
        with torch.no_grad():
            for (_, many), (_, one) in zip(experts.projections(), mean.projections(), strict=True):
                assert many.biases is not None
                assert one.biases is not None
                one.weights[0].copy_(sum(many.weights) / len(many.weights))
                one.biases[0].copy_(sum(many.biases) / len(many.biases))
        torch.testing.assert_close(_hidden(body.eval()), _hidden(mean_body.eval()))
        with torch.no_grad():
            for _, projection in experts.projections():
                projection.weights[-1].add_(0.5)


def test_m_identical_experts_are_one_expert(backbone: Backbone) -> None:
    body, experts = _mixture(backbone, share="none")
    single_body, single = _mixture(backbone, num_experts=1)
    with torch.no_grad():
        for (_, many), (_, one) in zip(experts.projections(), single.projections(), strict=True):
            for weight in many.weights:
                weight.copy_(one.weights[0])
    expected = _hidden(single_body.eval())
    torch.testing.assert_close(_hidden(body.eval()), expected)
    experts.set_routes(_draw(experts))
    torch.testing.assert_close(_hidden(_without_dropout(body)), expected)


def test_two_passes_in_one_forward_equal_two_forwards(backbone: Backbone) -> None:
    body, experts = _mixture(backbone, share="none")
    _without_dropout(body)
    routes = _draw(experts)
    experts.set_routes(routes)
    ids = torch.arange(20).reshape(4, 5) + 4
    mask = torch.ones_like(ids)
    both = body(input_ids=torch.cat([ids, ids]), attention_mask=torch.cat([mask, mask])).last_hidden_state
    assert not torch.allclose(both[:4], both[4:])
    for index in range(2):
        experts.set_routes(routes[index : index + 1])
        alone = body(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(both[4 * index : 4 * index + 4], alone)


def test_bottleneck_experts_start_different_and_small(backbone: Backbone) -> None:
    _, experts = _mixture(backbone, share="none")
    for _, projection in experts.projections():
        assert not torch.equal(projection.weights[0], projection.weights[1])
        assert 0.01 < torch.stack(list(projection.weights)).std() < 0.03
        assert projection.biases is not None
        assert not any(bias.any() for bias in projection.biases)


def test_a_lora_starts_as_the_identity_with_distinct_experts(backbone: Backbone) -> None:
    lora = AdapterConfig(kind="lora", sites=("attn_q", "attn_v"), rank=4)
    body, experts = _mixture(backbone, adapter=lora)
    torch.testing.assert_close(_hidden(body.eval()), _hidden(backbone.model))
    (key_a, a), (key_b, b), *_ = experts.projections()
    assert (key_a, key_b) == ("layers.0.attn_q.lora_A", "layers.0.attn_q.lora_B")
    assert (a.num_experts, b.num_experts, a.biases) == (4, 1, None)
    assert not torch.equal(a.weights[0], a.weights[1])
    assert not b.weights[0].any()


def test_a_lora_can_start_with_copies_as_released(backbone: Backbone) -> None:
    lora = AdapterConfig(kind="lora", sites=("attn_q",), rank=4, distinct_init=False)
    _, experts = _mixture(backbone, adapter=lora)
    _, a = next(iter(experts.projections()))
    assert all(torch.equal(a.weights[0], weight) for weight in a.weights)


def test_initial_weights_depend_on_the_seed_alone(backbone: Backbone) -> None:
    def weights(seed: int) -> list[Tensor]:
        torch.rand(3)  # the global generator has no part in it
        return [p.detach() for _, x in _mixture(backbone, seed)[1].projections() for p in x.parameters()]

    assert all(map(torch.equal, weights(1), weights(1)))
    assert not all(map(torch.equal, weights(1), weights(2)))


def test_gradient_checkpointing_recomputes_the_same_route(backbone: Backbone) -> None:
    gradients = []
    for recompute in (False, True):
        body, experts = _mixture(backbone, share="none")
        _without_dropout(body)
        if recompute:
            recompute_activations(body)
        experts.set_routes(_draw(experts))
        _hidden(body).square().sum().backward()
        gradients.append([p.grad for _, x in experts.projections() for p in x.parameters()])
    assert any(g is None for g in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        if plain is None:
            assert recomputed is None
        else:
            torch.testing.assert_close(recomputed, plain)


def test_an_unknown_site_names_those_there_are(backbone: Backbone) -> None:
    with pytest.raises(InvalidConfig, match="mlp_out"):
        _mixture(backbone, adapter=AdapterConfig(sites=("mlp_gate",)))
