"""Attention over pages in plain torch: the definition, and a form for every device and dtype.

The form computes sequences with one new token together, in buckets of about equal length, over copies of their pages;
all others one by one. What it reads of a batch is uploaded once, for all layers.

Shapes: as in `paged`; B sequences of a bucket, L tokens of a sequence.
"""

from dataclasses import dataclass, field
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adamix_kernels.paged_batch import PAGE_TOKENS, PagedBatch


def write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, batch: PagedBatch) -> None:
    """The keys and values of the new tokens, `[T, Hkv, E]`, into their pages."""
    page, token = _on(batch, k.device).places
    k_pages[page, :, :, token] = k.to(k_pages.dtype)
    v_pages[page, :, token] = v.to(v_pages.dtype)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: PagedBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """One sequence after another, in at least fp32 and rounded at the end."""
    write(k, v, k_pages, v_pages, batch)
    group, wide = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    out = torch.empty_like(q)
    for sequence, (start, end) in enumerate(zip(batch.indptr[:-1].tolist(), batch.indptr[1:].tolist(), strict=True)):
        keys, values, seen = _tokens_of(sequence, k_pages, v_pages, batch, window)
        keys, values = (t.to(wide).repeat_interleave(group, 0) for t in (keys, values))
        scores = scale * q[start:end].transpose(0, 1).to(wide) @ keys
        scores = scores.masked_fill(~seen, -torch.inf)
        out[start:end] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out


def in_buckets(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: PagedBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    write(k, v, k_pages, v_pages, batch)
    out = q.new_empty(q.shape)
    for bucket in _on(batch, q.device).buckets(batch, k_pages, window):
        out[bucket.rows] = _decode(q[bucket.rows], k_pages, v_pages, bucket, scale)
    for sequence in np.flatnonzero(batch.lengths > 1).tolist():
        rows = slice(*batch.indptr[sequence : sequence + 2].tolist())
        keys, values, seen = _tokens_of(sequence, k_pages, v_pages, batch, window)
        keys, queries = keys.transpose(1, 2), q[rows].transpose(0, 1)
        chunk = F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out[rows] = chunk[0].transpose(0, 1)
    return out


def _decode(q: Tensor, k_pages: Tensor, v_pages: Tensor, bucket: "_Bucket", scale: float) -> Tensor:
    """One query [B, Hq, E] of each of B sequences, over pages that are filled up to those of the longest."""
    size, num_tokens = bucket.unseen.shape
    heads, features = k_pages.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = k_pages.view(-1, PAGE_TOKENS).index_select(0, bucket.keys).view(size, heads, features, num_tokens)
    values = v_pages.view(-1, PAGE_TOKENS * features).index_select(0, bucket.values)
    # What nobody sees may be anything, and nothing times zero is not always zero.
    values.view(-1, features).index_fill_(0, bucket.unseen_values, 0)
    scores = scale * (q.reshape(size, heads, -1, features) @ keys).to(wide)
    weights = scores.masked_fill_(bucket.unseen[:, None, None], -torch.inf).softmax(-1).to(q.dtype)
    return (weights @ values.view(size, heads, num_tokens, features)).reshape(size, -1, features)


def _tokens_of(
    sequence: int, k_pages: Tensor, v_pages: Tensor, batch: PagedBatch, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [Hkv, E, L] and values [Hkv, L, E] of what a sequence's rows see; bool [rows, L], which row sees what."""
    start, end = int(batch.starts[sequence]), int(batch.ends[sequence])
    first = 0 if window is None else max(0, start + 1 - window)
    page = first // PAGE_TOKENS
    pages = _on(batch, k_pages.device).table[sequence, page : -(-end // PAGE_TOKENS)]
    kept = slice(first - page * PAGE_TOKENS, end - page * PAGE_TOKENS)
    keys = k_pages[pages].permute(1, 2, 0, 3).flatten(2)[:, :, kept]
    values = v_pages[pages].transpose(0, 1).flatten(1, 2)[:, kept]
    token = torch.arange(first, end, device=k_pages.device)
    row = token[start - first :, None]
    seen = token <= row
    return keys, values, seen if window is None else seen & (token > row - window)


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Sequences with one new token and about as many pages, and where L tokens of each are: its last, or all.

    Attributes:
        rows: int64 [B], their rows.
        unseen: bool [B, L], which of the tokens are not theirs to see.
        keys: int64 [B * Hkv * E * L / 16], the rows of 16 numbers in which their keys lie.
        values: int64 [B * Hkv * L / 16], the pages of one head in which their values lie.
        unseen_values: int64, which of the rows [B * Hkv * L] of values nobody sees.
    """

    rows: Tensor
    unseen: Tensor
    keys: Tensor
    values: Tensor
    unseen_values: Tensor


@dataclass(frozen=True, eq=False)
class _Indices:
    """A batch as the torch form reads it on a device.

    Attributes:
        table: int64 [S, W].
        places: int64 [T] each, the page of every row's token and its place there.
    """

    table: Tensor
    places: tuple[Tensor, Tensor]
    _buckets: dict[tuple[int, int, int | None], list[_Bucket]] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def of(cls, batch: PagedBatch, device: torch.device) -> Self:
        places = (_upload(each, device) for each in np.divmod(batch.places, PAGE_TOKENS))
        return cls(_upload(batch.table, device), (next(places), next(places)))

    def buckets(self, batch: PagedBatch, k_pages: Tensor, window: int | None) -> list[_Bucket]:
        """The sequences with one new token; from one bucket to the next they are longer by up to a quarter."""
        heads, features = k_pages.shape[1:3]
        found = self._buckets.get((heads, features, window))
        if found is None:
            alone = np.flatnonzero(batch.lengths == 1)
            level = np.ceil(np.log(-(-batch.ends[alone] // PAGE_TOKENS)) / np.log(1.25))
            found = [
                _bucket(batch, alone[level == each], heads, features, window, k_pages.device)
                for each in np.unique(level)
            ]
            self._buckets[heads, features, window] = found
        return found


def _bucket(
    batch: PagedBatch,
    sequences: NDArray[np.int64],
    heads: int,
    features: int,
    window: int | None,
    device: torch.device,
) -> _Bucket:
    ends = batch.ends[sequences, None]
    last_page = (ends - 1) // PAGE_TOKENS
    width = int(last_page.max()) + 1
    if window is not None:
        width = min(width, -(-window // PAGE_TOKENS) + 1)
    column = np.maximum(last_page + 1 - width, 0) + np.arange(width)
    position = (column[:, :, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)).reshape(len(sequences), -1)
    unseen = position >= ends
    if window is not None:
        unseen |= position < ends - window
    page = batch.table[sequences[:, None], np.minimum(column, last_page)].astype(np.int64)
    head = page[:, None] * heads + np.arange(heads)[:, None]
    feature = head[:, :, None] * features + np.arange(features)[:, None]
    unseen_values = np.flatnonzero(np.repeat(unseen[:, None], heads, axis=1))
    arrays = batch.indptr[sequences], unseen, feature.ravel(), head.ravel(), unseen_values
    return _Bucket(*(_upload(array, device) for array in arrays))


# Every layer asks for the same, so they are kept for as long as the batch lives.
_indices: WeakKeyDictionary[PagedBatch, dict[torch.device, _Indices]] = WeakKeyDictionary()


def _on(batch: PagedBatch, device: torch.device) -> _Indices:
    on_device = _indices.setdefault(batch, {})
    found = on_device.get(device)
    if found is None:
        found = on_device[device] = _Indices.of(batch, device)
    return found


def _upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for; integers as int64."""
    host = torch.from_numpy(array if array.dtype == np.bool_ else array.astype(np.int64))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
