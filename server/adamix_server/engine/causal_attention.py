"""Causal attention over pages, through the public attention interface of transformers.

The tokens of one step lie one after another in `[1, T]`. Each layer writes their keys and values to the pages of their
sequences, then each token attends to its sequence's tokens up to itself, or to the last few of them where the layer has
a window. Where sequences begin and which pages are theirs is said by a with-block around the forward pass, because
models do not pass it through. What is computed, and how, is `adamix_kernels.paged`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from adamix.errors import FailedPrecondition, InternalError
from adamix_kernels.paged import Implementation, PagedBatch, paged_attention
from adamix_server.engine.attention import check_call
from adamix_server.engine.kv_cache import KvCache

IMPLEMENTATION = "adamix_paged"

# What layers ask for and get.
_HONOURED = frozenset({"sliding_window"})

# T tokens, N heads of queries, K heads of keys and values, E features of a head.

_active = threading.local()


@contextmanager
def paged(batch: PagedBatch, cache: KvCache, implementation: Implementation | None = None) -> Iterator[None]:
    """The sequences of the forward pass inside the block, and where their keys and values lie.

    Refuses nesting; one per thread.
    """
    if getattr(_active, "step", None) is not None:
        raise InternalError("a paged forward pass is running in this thread already")
    _active.step = batch, cache, implementation
    try:
        yield
    finally:
        _active.step = None


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of one layer; `query` is `[1, N, T, E]`, `key` and `value` are `[1, K, T, E]`.

    Returns:
        `[1, T, N, E]`, and None in place of the attention weights.

    Raises:
        FailedPrecondition: the model asks for something this function does not compute (a soft cap, a mask, sinks, …),
            or its attention is not causal. Ignoring it would give wrong answers.
    """
    step: tuple[PagedBatch, KvCache, Implementation | None] | None = getattr(_active, "step", None)
    if step is None:
        raise InternalError("paged attention ran outside `with paged(…)`")
    check_call(module, attention_mask, keywords, _HONOURED)
    if not getattr(module, "is_causal", False) or keywords.get("is_causal") is False:
        raise FailedPrecondition(f"paged attention is causal, and that of {type(module).__name__} is not")
    batch, cache, implementation = step
    layer: int = module.layer_idx  # type: ignore[assignment]  # torch types what modules have as tensors
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    out = paged_attention(
        q,
        k,
        v,
        cache.keys[layer],
        cache.values[layer],
        batch,
        scale=scaling,
        window=keywords.get("sliding_window"),
        implementation=implementation,
    )
    return out[None], None


def register() -> None:
    """Make `set_attn_implementation(IMPLEMENTATION)` available on every model."""
    AttentionInterface.register(IMPLEMENTATION, causal_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *args, **kwargs: None)  # noqa: ARG005 - the interface's own
