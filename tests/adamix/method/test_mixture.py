"""Routing: what is drawn, which expert a row meets, what gets a gradient, and what evaluation mode computes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamix.backbone import Backbone
from adamix.bottleneck import Bottleneck
from adamix.config import AdapterConfig, MixtureConfig
from adamix.errors import FailedPrecondition, InvalidConfig
from adamix.heads import recompute_activations, shared_copy
from adamix.lora import Lora
from adamix.mixture import DOWN, UP, ExpertLinear, Mixture, RoutedBottleneck, RoutedLora, RouteTable


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


def test_each_pass_takes_the_experts_of_its_route() -> None:
    table = RouteTable()
    linear = ExpertLinear(3, 2, 4, bias=True, routes=table, point=1, side=1)
    for parameter in linear.parameters():
        nn.init.normal_(parameter)
    routes = torch.zeros(2, 2, 2, dtype=torch.int64)
    routes[0, 1, 1], routes[1, 1, 1] = 3, 2
    table.set(routes)
    x = torch.randn(6, 5, 3)
    y = linear(x)
    for rows, expert in ((slice(0, 3), 3), (slice(3, 6), 2)):
        expected = F.linear(x[rows], linear.weights[expert], linear.biases[expert])  # type: ignore[index]
        torch.testing.assert_close(y[rows], expected)


def test_at_instance_granularity_each_row_takes_its_own() -> None:
    table = RouteTable()
    linear = ExpertLinear(3, 2, 4, bias=False, routes=table, point=0, side=0)
    for parameter in linear.parameters():
        nn.init.normal_(parameter)
    routes = torch.randint(4, (2, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    table.set(routes)
    x = torch.randn(6, 5, 3)
    y = linear(x)
    for row in range(6):
        expert = int(routes[row // 3, 0, 0, row % 3])
        torch.testing.assert_close(y[row], F.linear(x[row], linear.weights[expert]))


def test_an_expert_without_rows_has_no_gradient() -> None:
    """None, not zeros: zeros would let momentum and weight decay move it."""
    table = RouteTable()
    linear = ExpertLinear(3, 2, 4, bias=True, routes=table, point=0, side=0)
    table.set(torch.tensor([[[2, 0]], [[0, 0]]]))
    linear(torch.randn(4, 5, 3)).sum().backward()
    assert linear.biases is not None
    for expert in range(4):
        is_routed = expert in (0, 2)
        assert (linear.weights[expert].grad is not None) == is_routed
        assert (linear.biases[expert].grad is not None) == is_routed


@pytest.mark.parametrize("share", [None, DOWN, UP])
@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
def test_a_routed_adapter_is_its_projections_one_after_the_other(kind: str, share: int | None) -> None:
    """To the bit, gradients included: what is one op in training is two projections wherever there are no kernels."""
    table = RouteTable()
    table.set(torch.tensor([[[2, 0, 1], [1, 1, 0]], [[0, 0, 2], [2, 1, 0]]]).transpose(0, 1)[None])
    shapes = ((DOWN, 8, 3), (UP, 3, 8))
    down, up = (
        ExpertLinear(*widths, 1 if side == share else 3, bias=kind == "bottleneck", routes=table, point=0, side=side)
        for side, *widths in shapes
    )
    torch.manual_seed(0)
    for parameter in (*down.parameters(), *up.parameters()):
        nn.init.normal_(parameter)
    adapter = RoutedBottleneck(down, up, "gelu", 0.5) if kind == "bottleneck" else RoutedLora(down, up, 0.5, 0.25)
    plain = Bottleneck if kind == "bottleneck" else Lora
    x, residual = torch.randn(6, 5, 8), torch.randn(6, 5, 8)
    for added in (None, x, residual):
        results = []
        for forward in (type(adapter).forward, plain.forward):
            torch.manual_seed(1)  # for dropout
            y = forward(adapter, x, added)
            gradients = torch.autograd.grad(y.square().sum(), list(adapter.parameters()), allow_unused=True)
            results.append((y, *gradients))
        for routed, in_turn in zip(*results, strict=True):
            assert (routed is None and in_turn is None) or torch.equal(routed, in_turn)


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
