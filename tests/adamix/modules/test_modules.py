"""The adapters at their sites against formulas written out by hand, through a whole layer of BERT."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamix.backbones.backbone import Backbone
from adamix.backbones.sites import insert
from adamix.modules.bottleneck import Bottleneck, BottleneckAtLinear, BottleneckAtNorm
from adamix.modules.heads import shared_copy
from adamix.modules.lora import Lora, LoraAtLinear


def _bottleneck(width: int = 32, rank: int = 4, scale: float = 1.0) -> Bottleneck:
    return Bottleneck(nn.Linear(width, rank), nn.Linear(rank, width), "gelu", scale)


def _by_hand(adapter: Bottleneck, h: Tensor) -> Tensor:
    down, up = adapter.down, adapter.up
    assert isinstance(down, nn.Linear)
    assert isinstance(up, nn.Linear)
    units = h @ down.weight.T + down.bias
    gelu = units * 0.5 * (1 + torch.erf(units / 2**0.5))
    return adapter.scale * (gelu @ up.weight.T + up.bias)


def test_a_layer_with_adamix_is_the_paper_s_formula(backbone: Backbone) -> None:
    """`h = dense(x); a = h + Up(GELU(Down(h))); y = LN(Dropout(a) + attn_out)`, dropout off."""
    torch.manual_seed(1)
    adapter = _bottleneck()
    body = shared_copy(backbone.model)
    insert(body, ["mlp_out"], lambda point: BottleneckAtLinear(point.module, adapter))
    adapted, plain = body.encoder.layer[0], backbone.model.encoder.layer[0]
    attn_out, x = torch.randn(2, 5, 32), torch.randn(2, 5, 48)
    h = plain.output.dense(x)
    expected = plain.output.LayerNorm(h + _by_hand(adapter, h) + attn_out)
    torch.testing.assert_close(adapted.output(x, attn_out), expected)


def test_a_norm_point_normalises_before_and_after(backbone: Backbone) -> None:
    torch.manual_seed(2)
    adapter, norm = _bottleneck(scale=0.5), backbone.model.encoder.layer[0].output.LayerNorm
    s = torch.randn(2, 5, 32)
    expected = norm(s + _by_hand(adapter, norm(s)))
    torch.testing.assert_close(BottleneckAtNorm(norm, adapter)(s), expected)


def test_a_lora_adds_the_scaled_product() -> None:
    torch.manual_seed(3)
    linear, a, b = nn.Linear(6, 8), nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
    x = torch.randn(3, 6)
    folded = F.linear(x, linear.weight + 4.0 * b.weight @ a.weight, linear.bias)
    torch.testing.assert_close(LoraAtLinear(linear, Lora(a, b, 4.0))(x), folded)


def test_a_window_touches_its_columns_only() -> None:
    torch.manual_seed(4)
    fused, a, b = nn.Linear(6, 9), nn.Linear(6, 2, bias=False), nn.Linear(2, 3, bias=False)
    x = torch.randn(3, 6)
    change = LoraAtLinear(fused, Lora(a, b, 2.0), (3, 6))(x) - fused(x)
    torch.testing.assert_close(change[:, 3:6], 2.0 * b(a(x)))
    assert not change[:, :3].any()
    assert not change[:, 6:].any()


def test_lora_dropout_acts_in_training_only() -> None:
    torch.manual_seed(5)
    lora = Lora(nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False), 1.0, dropout=0.5)
    x = torch.randn(3, 6)
    assert not torch.equal(lora(x), lora(x))
    lora.eval()
    torch.testing.assert_close(lora(x), lora.b(lora.a(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_keeps_the_dtype_of_a_half_precision_backbone(dtype: torch.dtype) -> None:
    x = torch.randn(3, 32, dtype=dtype)
    linear, norm = nn.Linear(32, 32, dtype=dtype), nn.LayerNorm(32, dtype=dtype)
    assert BottleneckAtLinear(linear, _bottleneck())(x).dtype == dtype
    assert BottleneckAtNorm(norm, _bottleneck())(x).dtype == dtype
    lora = Lora(nn.Linear(32, 2, bias=False), nn.Linear(2, 32, bias=False), 1.0)
    assert LoraAtLinear(linear, lora)(x).dtype == dtype


def test_a_shared_copy_shares_weights_and_nothing_else(backbone: Backbone) -> None:
    body = shared_copy(backbone.model)
    original = dict(backbone.model.named_parameters())
    assert all(parameter is original[name] for name, parameter in body.named_parameters())
    insert(body, ["mlp_out"], lambda point: nn.Identity())
    body.train()
    assert isinstance(backbone.model.encoder.layer[0].output.dense, nn.Linear)
    assert not backbone.model.training
