"""What layers may ask of attention over pages, and what is refused because they would not get it."""

from typing import Any

import pytest
import torch
from torch import nn

from adamix.backbones.decoders import KvShape
from adamix.errors import FailedPrecondition, InternalError
from adamix_kernels.paged import PagedBatch
from adamix_server.engine.causal_attention import causal_attention, paged
from adamix_server.engine.kv_cache import KvCache


class Layer(nn.Module):
    is_causal, layer_idx = True, 1


def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of twenty tokens in one text: two heads of queries to one of keys."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 20, 8), torch.randn(1, 1, 20, 8), torch.randn(1, 1, 20, 8)
    return q, k, v


def step() -> tuple[PagedBatch, KvCache]:
    shape = KvShape(num_layers=2, num_heads=2, num_kv_heads=1, head_size=8)
    return PagedBatch.of([0], [20], [[2, 1]]), KvCache.allocate(shape, 3, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("window", [None, 5])
def test_each_token_sees_those_before_it_within_its_layers_window(window: int | None) -> None:
    q, k, v = states()
    batch, cache = step()
    with paged(batch, cache):
        actual, weights = causal_attention(Layer(), q, k, v, None, scaling=0.5, sliding_window=window, use_cache=False)
    place = torch.arange(20)
    seen = place[None] <= place[:, None]
    if window is not None:
        seen &= place[None] > place[:, None] - window
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(actual, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert weights is None
    assert not cache.keys[0].any()
    assert cache.keys[1][1:].any()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"attention_mask": torch.zeros(1)}, "attention_mask"),
        ({"softcap": 30.0}, "softcap"),
        ({"alibi": torch.zeros(1)}, "alibi"),
        ({"s_aux": torch.zeros(1)}, "s_aux"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "causal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_ignored_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    q, k, v = states()
    mask = asked.pop("attention_mask", None)
    with paged(*step()), pytest.raises(FailedPrecondition, match=named):
        causal_attention(Layer(), q, k, v, mask, scaling=0.5, **asked)


def test_attention_that_is_not_causal_is_refused() -> None:
    with paged(*step()), pytest.raises(FailedPrecondition, match="of Module is not"):
        causal_attention(nn.Module(), *states(), None)


def test_it_runs_inside_of_one_step_alone() -> None:
    with pytest.raises(InternalError, match="outside"):
        causal_attention(Layer(), *states(), None)
    with paged(*step()), pytest.raises(InternalError, match="already"), paged(*step()):
        pass
