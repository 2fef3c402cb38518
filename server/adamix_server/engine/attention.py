"""Attention over packed sequences, through the public attention interface of transformers.

All sequences of a batch lie one after another in `[1, T]`; nothing between the layers knows where one ends. This
function does. The boundaries are set by a with-block around the forward pass, because models do not pass them through.

On a device one kernel takes the packed rows as they lie and reads of each sequence no row beyond its end.

On a CPU sequences are laid into blocks of equal length, several short ones to a block, and a mask keeps them apart; all
blocks of one length are one call. Where each call costs as much as the attention of a few short texts, that takes two
thirds of the time of one call for each length. The mask adds minus infinity, which hides every finite value and no
other: a sequence whose keys or values are not finite spoils its whole block. Whoever runs a batch sees that in the
results, and lays such sequences apart. Where answers have to be equal to the bit in every company, each sequence is a
call of its own.
"""

import bisect
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from adamix.errors import FailedPrecondition, InternalError
from adamix_kernels.attention import LARGEST_HEAD, SequenceLayout, varlen_attention

IMPLEMENTATION = "adamix_packed"

# Keywords that change nothing here: positions were applied before, and there is neither a cache nor weights to return.
_HARMLESS = frozenset({"position_ids", "use_cache", "cache_position", "output_attentions", "dropout", "is_causal"})
# Lengths of blocks: the first holds sequences up to it, each further one those up to twice as long. Above the last a
# sequence has a block of its own, for the cost of a block grows with its square.
_SHORTEST_BLOCK, _LONGEST_SHARED_BLOCK = 64, 512

# B blocks of one length L, S sequences, T tokens, H hidden features, N attention heads, E features of a head.


@dataclass(frozen=True)
class _Blocks:
    """Blocks of one length.

    Attributes:
        rows: int64 [B*L], the packed row of each place. Places that hold no token repeat a row of their block.
        shape: (B, L).
        mask: [B, 1, L, L] or, where every block holds one sequence, [B, 1, 1, L]: 0 or minus infinity, to be added to
            the scores; None if all places of all blocks hold one sequence.
    """

    rows: torch.Tensor
    shape: tuple[int, int]
    mask: torch.Tensor | None


@dataclass(frozen=True)
class PackedLayout:
    """Where the sequences of one batch lie in blocks, and the way back to packed rows: the layout for a CPU.

    Attributes:
        groups: the blocks, by length.
        inverse: int64 [T], the place of each packed row in the groups laid end to end.
    """

    groups: tuple[_Blocks, ...]
    inverse: torch.Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, dtype: torch.dtype, apart: Sequence[bool] | None = None
    ) -> "PackedLayout":
        """Lay out sequences of these lengths, given in packed order; each is at least 1.

        Args:
            dtype: of queries and keys.
            apart: the sequences that share a block with no other; None means that all may.
        """
        starts = np.cumsum([0, *lengths])
        inverse = np.empty(starts[-1], dtype=np.int64)
        groups: list[_Blocks] = []
        filled = 0
        for blocks in _blocks(lengths, apart or [False] * len(lengths)):
            length = max(sum(lengths[i] for i in block) for block in blocks)
            rows = np.empty((len(blocks), length), dtype=np.int64)
            owner = np.full((len(blocks), length), -1)
            for b, block in enumerate(blocks):
                place = 0
                for i in block:
                    end = place + lengths[i]
                    rows[b, place:end] = np.arange(starts[i], starts[i + 1])
                    owner[b, place:end] = i
                    inverse[starts[i] : starts[i + 1]] = filled + b * length + np.arange(place, end)
                    place = end
                rows[b, place:] = starts[block[0]]
            filled += rows.size
            mask = _mask(owner, dtype, device)
            groups.append(_Blocks(torch.from_numpy(rows.reshape(-1)).to(device), rows.shape, mask))
        return cls(tuple(groups), torch.from_numpy(inverse).to(device))


def _blocks(lengths: Sequence[int], apart: Sequence[bool]) -> Iterator[list[list[int]]]:
    """Sequences by block, the blocks of one length together: best fit, longest first."""
    classes: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = max(_SHORTEST_BLOCK, 1 << (lengths[i] - 1).bit_length())
        classes.setdefault(size, []).append(i)
    for size, members in classes.items():
        blocks: list[list[int]] = []
        rooms: list[tuple[int, int]] = []  # (room that is left, block), sorted
        for i in members:
            at = bisect.bisect_left(rooms, (lengths[i], 0))
            alone = apart[i] or size > _LONGEST_SHARED_BLOCK
            if alone or at == len(rooms):
                blocks.append([i])
                room, block = (0 if alone else size - lengths[i]), len(blocks) - 1
            else:
                room, block = rooms.pop(at)
                blocks[block].append(i)
                room -= lengths[i]
            bisect.insort(rooms, (room, block))
        yield blocks


def _mask(owner: NDArray[np.int64], dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """What keeps sequences apart, from the sequence at each place [B, L] (-1: none)."""
    is_first = owner == owner[:, :1]
    if is_first.all():
        return None
    one_each = (is_first | (owner == -1)).all()
    same = is_first[:, None, :] if one_each else owner[:, :, None] == owner[:, None, :]
    mask = torch.zeros(same.shape, dtype=dtype).masked_fill_(torch.from_numpy(~same), -torch.inf)
    return mask[:, None].to(device)


@dataclass(frozen=True)
class SingleLayout:
    """The sequences of one batch, each computed by itself: its bits are its own. The layout for `--deterministic`."""

    lengths: tuple[int, ...]


Layout = PackedLayout | SequenceLayout | SingleLayout


def lay_out(
    lengths: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    apart: Sequence[bool] | None = None,
    *,
    deterministic: bool = False,
) -> Layout:
    """The layout for a device: see `PackedLayout.of`. Only blocks have to lay sequences apart."""
    if deterministic:
        return SingleLayout(tuple(lengths))
    if keeps_apart(device):
        return SequenceLayout.from_lengths(lengths)
    return PackedLayout.of(lengths, device, dtype, apart)


def keeps_apart(device: torch.device) -> bool:
    """Whether no sequence reaches another on this device, whatever its values are."""
    return device.type != "cpu"


_active = threading.local()


@contextmanager
def packed(layout: Layout) -> Iterator[None]:
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
    layout: Layout | None = getattr(_active, "layout", None)
    if layout is None:
        raise InternalError("packed attention ran outside `with packed(…)`")
    check_call(module, attention_mask, keywords)
    if getattr(module, "is_causal", False) or keywords.get("is_causal"):
        raise FailedPrecondition(f"packed attention does not support a causal mask of {type(module).__name__}")
    heads, tokens, features = query.shape[1:]
    if isinstance(layout, SequenceLayout):
        if features > LARGEST_HEAD:
            raise FailedPrecondition(f"packed attention takes heads of up to {LARGEST_HEAD} features, not {features}")
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        return varlen_attention(q, k, v, layout, scale=scaling)[None], None
    if isinstance(layout, SingleLayout):
        return _each_alone(query, key, value, layout, scaling)[None], None
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


def check_call(
    module: nn.Module,
    attention_mask: torch.Tensor | None,
    keywords: Mapping[str, Any],
    honoured: Collection[str] = (),
) -> None:
    """Refuse what a model asks of its attention and would not get.

    Args:
        keywords: beside queries, keys, values and the scale.
        honoured: those among them that the caller computes.

    Raises:
        FailedPrecondition: there is a mask, dropout or a keyword that nobody honours.
    """
    unknown = [
        name for name, value in keywords.items() if value is not None and name not in _HARMLESS and name not in honoured
    ]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise FailedPrecondition(f"packed attention does not support {', '.join(unknown)} of {type(module).__name__}")
    if keywords.get("dropout"):
        raise FailedPrecondition("packed attention is for inference: dropout is on")


def _each_alone(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SingleLayout, scaling: float | None
) -> torch.Tensor:
    """`[1, N, T, E]` each -> `[T, N, E]`."""
    outputs = []
    for parts in zip(*(torch.split(t, list(layout.lengths), dim=2) for t in (query, key, value)), strict=True):
        # Copies: how a sequence's rows lie in memory must not depend on how many were before them.
        q, k, v = (part.clone(memory_format=torch.contiguous_format) for part in parts)
        o = F.scaled_dot_product_attention(q, k, v, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(o[0].transpose(0, 1))
    return torch.cat(outputs)


def register() -> None:
    """Make `set_attn_implementation(IMPLEMENTATION)` available on every model."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *args, **kwargs: None)  # noqa: ARG005 - the interface's own
