"""Attention over packed sequences, through the public attention interface of transformers.

All sequences of a batch lie one after another in `[1, T]`; nothing between the layers knows where one ends. This
function does: it gathers sequences of similar length into small groups, attends within each, and scatters back. The
boundaries are set by a with-block around the forward pass, because models do not pass them through.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from adamix.errors import FailedPrecondition, InternalError

IMPLEMENTATION = "adamix_packed"

# Keywords that change nothing here: positions were applied before, and there is neither a cache nor weights to return.
_HARMLESS = frozenset({"position_ids", "use_cache", "cache_position", "output_attentions", "dropout", "is_causal"})
# Groups are as long as their longest sequence; a new one starts when padding would exceed this share of the group.
_MAX_PADDING = 0.25
_SHORT = 8

# B sequences in a group, L its longest length, T tokens, H hidden features, N attention heads, E features of a head.


@dataclass(frozen=True)
class _Group:
    rows: torch.Tensor  # int64 [B*L]: the packed row of each place; places past a sequence's end repeat its first row
    shape: tuple[int, int]  # (B, L)
    mask: torch.Tensor | None  # bool [B, 1, 1, L], True where a place holds a token; None if all do


@dataclass(frozen=True)
class PackedLayout:
    """Where the sequences of one batch lie, grouped by length, and the way back to packed rows."""

    groups: tuple[_Group, ...]
    inverse: torch.Tensor  # int64 [T]: place of each packed row in the groups laid end to end

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "PackedLayout":
        """Group sequences of these lengths, given in packed order; each is at least 1."""
        sizes = np.asarray(lengths, dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        order = np.argsort(-sizes, kind="stable")
        groups, inverse, filled = [], np.empty(int(sizes.sum()), dtype=np.int64), 0
        for members in _split(order, sizes):
            longest = int(sizes[members[0]])
            place = np.arange(longest)
            inside = place[None, :] < sizes[members][:, None]
            rows = np.where(inside, starts[members][:, None] + place[None, :], starts[members][:, None])
            flat = np.arange(filled, filled + rows.size).reshape(rows.shape)
            inverse[rows[inside]] = flat[inside]
            filled += rows.size
            mask = None if inside.all() else torch.from_numpy(inside[:, None, None, :]).to(device)
            groups.append(_Group(torch.from_numpy(rows.reshape(-1)).to(device), rows.shape, mask))
        return cls(tuple(groups), torch.from_numpy(inverse).to(device))


def _split(order: np.ndarray[Any, np.dtype[np.int64]], sizes: np.ndarray[Any, Any]) -> Iterator[Any]:
    """Cut sequences, longest first, into runs of similar length."""
    first = 0
    for i in range(1, len(order) + 1):
        longest = sizes[order[first]]
        shortest_allowed = longest * (1 - 2 * _MAX_PADDING)
        if i == len(order) or (sizes[order[i]] < shortest_allowed and longest > _SHORT):
            yield order[first:i]
            first = i


_active = threading.local()


@contextmanager
def packed(layout: PackedLayout) -> Iterator[None]:
    """The sequence boundaries of the forward pass inside the block. Refuses nesting; one per thread."""
    if getattr(_active, "layout", None) is not None:
        raise InternalError("a packed forward pass is running in this thread already")
    _active.layout = layout
    try:
        yield
    finally:
        _active.layout = None


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Bidirectional attention within each sequence; `query`, `key`, `value` are `[1, N, T, E]`.

    Returns:
        `[1, T, N, E]`, and None in place of the attention weights.

    Raises:
        FailedPrecondition: the model asks for something this function does not compute (a window, a soft cap, a
            causal mask, …). Ignoring it would give wrong answers.
    """
    layout: PackedLayout | None = getattr(_active, "layout", None)
    if layout is None:
        raise InternalError("packed attention ran outside `with packed(…)`")
    unknown = [name for name, value in keywords.items() if value is not None and name not in _HARMLESS]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown or getattr(module, "is_causal", False) or keywords.get("is_causal"):
        what = ", ".join(unknown) or "a causal mask"
        raise FailedPrecondition(f"packed attention does not support {what} of {type(module).__name__}")
    if keywords.get("dropout"):
        raise FailedPrecondition("packed attention is for inference: dropout is on")
    heads, tokens, features = query.shape[1:]
    rows = [t[0].transpose(0, 1).reshape(tokens, -1) for t in (query, key, value)]
    outputs = []
    for group in layout.groups:
        q, k, v = (r.index_select(0, group.rows).view(*group.shape, -1, features).transpose(1, 2) for r in rows)
        o = F.scaled_dot_product_attention(
            q, k, v, attn_mask=group.mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(o.transpose(1, 2).reshape(-1, heads * features))
    together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return together.index_select(0, layout.inverse).view(1, tokens, heads, features), None


def register() -> None:
    """Make `set_attn_implementation(IMPLEMENTATION)` available on every model."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *args, **kwargs: None)  # noqa: ARG005 - the interface's own
