"""Attention of new tokens to all tokens of their sequence, whose keys and values lie in pages: the op and its forms.

    out[t, h] = sum_u softmax_u(scale * q[t, h] . k[u, h']) v[u, h']   u <= t in the sequence of t, h' = h // (Hq / Hkv)

A cache is two tensors: keys `[P, Hkv, E, 16]`, values `[P, Hkv, 16, E]`, P pages of 16 tokens. A page's keys lie
feature by feature, so that a product with one query gives 16 scores at once. Page 0 is scratch: rows that fill a batch
up write there, and what it holds means nothing.

Forms: `reference` is the definition, in the cache's dtype or wider; `torch` computes sequences with one new token
together, in groups of about equal length, and all others one by one, on every device and in every dtype; `native` is C
on CPUs in fp32. In all of them nothing of one sequence reaches another, not even a value that is not finite, and what a
page holds beyond its sequence's tokens may be anything. In `native`, moreover, a row has the same bits in whatever
company, in whatever chunk, and for any number of threads.

Shapes: T new tokens (rows), S sequences, P pages, W pages of the longest sequence, Hq and Hkv heads, E features of a
head, L tokens of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adamix_kernels import native

Implementation = Literal["reference", "torch", "native"]

PAGE_TOKENS = 16
SCRATCH_PAGE = 0
_MOST_TOKENS = int(np.iinfo(np.int32).max) - PAGE_TOKENS


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Which rows are whose new tokens, and where each sequence's tokens lie. Built once a step, for all layers.

    Attributes:
        starts: int64 [S], tokens of each sequence that were computed before.
        indptr: int64 [S + 1]: the new tokens of sequence s are the rows `indptr[s]:indptr[s + 1]`.
        table: int32 [S, W], each sequence's pages in the order of its tokens; beyond them scratch.
    """

    starts: NDArray[np.int64]
    indptr: NDArray[np.int64]
    table: NDArray[np.int32]
    _blocked: dict[int, native.BlockedBatch] = field(init=False, repr=False, default_factory=dict)
    _on_device: dict[torch.device, "_Indices"] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def of(
        cls, starts: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int] | NDArray[np.integer]]
    ) -> Self:
        """Sequences with `lengths` new tokens behind `starts` others, each with pages for both; more are ignored.

        Raises:
            ValueError: numbers are negative or too large, or a sequence has too few pages.
        """
        first, new = np.array(starts, np.int64), np.array(lengths, np.int64)
        if not len(first) == len(new) == len(pages):
            raise ValueError(f"{len(first)} starts, {len(new)} lengths and pages of {len(pages)} sequences")
        if min(first.min(initial=0), new.min(initial=0)) < 0 or (first + new).max(initial=0) > _MOST_TOKENS:
            raise ValueError(f"starts and lengths must not be negative, nor together more than {_MOST_TOKENS}")
        needed = (-(-(first + new) // PAGE_TOKENS)).tolist()
        table = np.full((len(first), max(needed, default=0)), SCRATCH_PAGE, np.int32)
        for row, count, of_sequence in zip(table, needed, pages, strict=True):
            if len(of_sequence) < count:
                raise ValueError(f"a sequence has {len(of_sequence)} pages and needs {count}")
            row[:count] = of_sequence[:count]
        if table.min(initial=0) < 0:
            raise ValueError("pages must not be negative")
        return cls(first, np.insert(np.cumsum(new), 0, 0), table)

    @property
    def num_rows(self) -> int:
        return int(self.indptr[-1])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [S], the new tokens of each sequence."""
        return np.diff(self.indptr)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """int64 [S], the tokens of each sequence, the new ones included."""
        return self.starts + self.lengths

    @cached_property
    def longest(self) -> int:
        """The most tokens of a sequence."""
        return int(self.ends.max(initial=0))

    @cached_property
    def num_pages_needed(self) -> int:
        """How many pages a cache must have at least: one more than the largest page number."""
        return int(self.table.max(initial=0)) + 1

    @cached_property
    def has_chunks(self) -> bool:
        """Whether some sequence has more than one new token."""
        return bool((self.lengths > 1).any())

    @cached_property
    def num_seen(self) -> int:
        """Tokens that all rows together attend to, without a window."""
        return int((self.lengths * self.starts + self.lengths * (self.lengths + 1) // 2).sum())

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """int64 [T], where each row's token lies: page times 16 plus its place there."""
        sequence = np.repeat(np.arange(len(self.starts)), self.lengths)
        position = np.arange(self.num_rows) - np.repeat(self.indptr[:-1] - self.starts, self.lengths)
        return self.table[sequence, position // PAGE_TOKENS] * np.int64(PAGE_TOKENS) + position % PAGE_TOKENS

    def blocked(self, rows: int) -> native.BlockedBatch:
        """What the native form reads, in blocks of at most `rows` rows of one sequence, most work first."""
        found = self._blocked.get(rows)
        if found is None:
            per_sequence = -(-self.lengths // rows)
            sequence = np.repeat(np.arange(len(self.starts)), per_sequence)
            before = np.repeat(np.cumsum(per_sequence) - per_sequence, per_sequence)
            first = self.indptr[sequence] + (np.arange(len(sequence)) - before) * rows
            count = np.minimum(self.indptr[sequence + 1] - first, rows)
            last_position = self.starts[sequence] + first + count - self.indptr[sequence]
            order = np.argsort(-(last_position * count), kind="stable")
            found = self._blocked[rows] = native.BlockedBatch(
                indptr=self.indptr,
                starts=self.starts,
                table=self.table,
                places=self.places,
                blocks=np.stack([sequence, first, count], axis=1)[order].astype(np.int32),
                has_chunks=self.has_chunks,
                longest=self.longest,
            )
        return found

    def on(self, device: torch.device) -> "_Indices":
        """What the torch form reads, on a device."""
        found = self._on_device.get(device)
        if found is None:
            found = self._on_device[device] = _Indices.of(self, device)
        return found


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: PagedBatch,
    *,
    scale: float | None = None,
    window: int | None = None,
    implementation: Implementation | None = None,
) -> Tensor:
    """Write k and v to their pages, then let each new token attend to its sequence's tokens up to itself.

    For inference. No two sequences of a batch may have new tokens in one page, but for the scratch page.

    Args:
        q: [T, Hq, E]; any strides, best with the features of a head together.
        k, v: [T, Hkv, E] in the same dtype, Hq a multiple of Hkv: neighbouring query heads share one of theirs.
        k_pages, v_pages: [P, Hkv, E, 16] and [P, Hkv, 16, E], contiguous. Modified.
        batch: of the T rows.
        scale: factor on the scores; None is `E ** -0.5`.
        window: how many tokens each one sees at most, itself included; None is all.
        implementation: None takes `native` where it was built and can, else `torch`.

    Returns:
        [T, Hq, E].

    Raises:
        ValueError: the tensors do not fit each other or the batch, or the implementation cannot compute this here.
    """
    _check(q, k, v, k_pages, v_pages, batch, window)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = implementation
    if chosen is None:
        chosen = "torch" if _why_not_native(q, k_pages) else "native"
    if chosen not in _FORMS:
        raise ValueError(f"paged_attention has no implementation {chosen!r}; it has: {', '.join(_FORMS)}")
    if not batch.num_rows:
        return torch.empty_like(q)
    return _FORMS[chosen](q, k, v, k_pages, v_pages, batch, scale, window)


def write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, batch: PagedBatch) -> None:
    """The keys and values of the new tokens, `[T, Hkv, E]`, into their pages."""
    page, token = batch.on(k.device).places
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
        keys, values = _tokens_of(sequence, k_pages, v_pages, batch)
        keys, values = (t.to(wide).repeat_interleave(group, 0) for t in (keys, values))
        scores = scale * q[start:end].transpose(0, 1).to(wide) @ keys
        scores = scores.masked_fill(~_visible(end - start, keys.shape[2], window, q.device), -torch.inf)
        out[start:end] = (scores.softmax(-1) @ values).transpose(0, 1)
    return out


def _torch(
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
    for bucket in batch.on(q.device).buckets:
        out[bucket.rows] = _decode(q[bucket.rows], k_pages, v_pages, bucket, scale, window)
    for sequence in np.flatnonzero(batch.lengths > 1).tolist():
        rows = slice(*batch.indptr[sequence : sequence + 2].tolist())
        keys, values = _tokens_of(sequence, k_pages, v_pages, batch)
        keys, queries = keys.transpose(1, 2), q[rows].transpose(0, 1)
        seen = _visible(queries.shape[1], keys.shape[1], window, q.device)
        chunk = F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out[rows] = chunk[0].transpose(0, 1)
    return out


def _decode(q: Tensor, k_pages: Tensor, v_pages: Tensor, bucket: "_Bucket", scale: float, window: int | None) -> Tensor:
    """One query [B, Hq, E] of each of B sequences, over their pages, which are filled up to the longest."""
    size, width = bucket.pages.shape
    heads, features = k_pages.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = k_pages[bucket.pages].permute(0, 2, 3, 1, 4).reshape(size, heads, features, width * PAGE_TOKENS)
    values = v_pages[bucket.pages].transpose(1, 2).reshape(size, heads, width * PAGE_TOKENS, features)
    position = torch.arange(width * PAGE_TOKENS, device=q.device)
    unseen = position >= bucket.ends[:, None]
    if window is not None:
        unseen |= position < bucket.ends[:, None] - window
    scores = scale * (q.reshape(size, heads, -1, features) @ keys).to(wide)
    weights = scores.masked_fill_(unseen[:, None, None], -torch.inf).softmax(-1).to(q.dtype)
    # What nobody sees may be anything, and nothing times zero is not always zero.
    values = values.masked_fill(unseen[:, None, :, None], 0)
    return (weights @ values).reshape(size, -1, features)


def _native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: PagedBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    library, reason = native.load(), _why_not_native(q, k_pages)
    if reason or library is None:
        raise ValueError(f"paged_attention has no native form here: {reason}")
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    # Below this, waking a thread costs more than it saves.
    pays = batch.num_seen * q.shape[1] * q.shape[2] >= _THREADS_PAY
    return library.paged_attention(
        q,
        k,
        v,
        k_pages,
        v_pages,
        batch.blocked(max(1, native.MOST_QUERIES // (q.shape[1] // k.shape[1]))),
        scale=scale,
        window=0 if window is None else window,
        threads=torch.get_num_threads() if pays else 1,
    )


_FORMS = {"reference": reference, "torch": _torch, "native": _native}
# Products of one query and one key, or value, in numbers.
_THREADS_PAY = 100_000


def _why_not_native(q: Tensor, k_pages: Tensor) -> str | None:
    """What keeps the native form from these tensors, or None."""
    if q.device.type != "cpu":
        return f"it is for CPUs, not {q.device.type}"
    if q.dtype != torch.float32 or k_pages.dtype != torch.float32:
        return f"it takes fp32, not {q.dtype} beside a cache of {k_pages.dtype}"
    return None if native.load() is not None else "it was not built, or is turned off"


def _tokens_of(sequence: int, k_pages: Tensor, v_pages: Tensor, batch: PagedBatch) -> tuple[Tensor, Tensor]:
    """Keys [Hkv, E, L] and values [Hkv, L, E] of a sequence."""
    end = int(batch.ends[sequence])
    pages = batch.on(k_pages.device).table[sequence, : -(-end // PAGE_TOKENS)]
    keys = k_pages[pages].permute(1, 2, 0, 3).flatten(2)[:, :, :end]
    values = v_pages[pages].transpose(0, 1).flatten(1, 2)[:, :end]
    return keys, values


def _visible(rows: int, end: int, window: int | None, device: torch.device) -> Tensor:
    """bool [rows, end]: what each of the last `rows` of `end` tokens sees."""
    token = torch.arange(end, device=device)
    row = token[end - rows :, None]
    seen = token <= row
    return seen if window is None else seen & (token > row - window)


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Sequences with one new token and about as many pages.

    Attributes:
        rows: int64 [B], their rows.
        pages: int64 [B, W].
        ends: int64 [B], their tokens.
    """

    rows: Tensor
    pages: Tensor
    ends: Tensor


@dataclass(frozen=True, eq=False)
class _Indices:
    """A batch as the torch form reads it.

    Attributes:
        table: int64 [S, W].
        places: int64 [T] each, the page of every row's token and its place there.
    """

    table: Tensor
    places: tuple[Tensor, Tensor]
    buckets: list[_Bucket]

    @classmethod
    def of(cls, batch: PagedBatch, device: torch.device) -> Self:
        def upload(array: NDArray[Any]) -> Tensor:
            host = torch.from_numpy(array.astype(np.int64))
            return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host

        alone = np.flatnonzero(batch.lengths == 1)
        num_pages = -(-batch.ends[alone] // PAGE_TOKENS)
        # From one bucket to the next, sequences are longer by up to a quarter.
        of_bucket = np.ceil(np.log(num_pages) / np.log(1.25))
        buckets = []
        for level in np.unique(of_bucket):
            chosen = alone[of_bucket == level]
            width = int(num_pages[of_bucket == level].max())
            arrays = batch.indptr[chosen], batch.table[chosen, :width], batch.ends[chosen]
            buckets.append(_Bucket(*map(upload, arrays)))
        places = upload(batch.places // PAGE_TOKENS), upload(batch.places % PAGE_TOKENS)
        return cls(upload(batch.table), places, buckets)


def _check(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, batch: PagedBatch, window: int | None
) -> None:
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[::2] != k.shape[::2]:
        shapes = ", ".join(str(list(t.shape)) for t in (q, k, v))
        raise ValueError(f"q, k and v of shapes {shapes} do not fit together as [rows, heads, features]")
    if len(q) != batch.num_rows:
        raise ValueError(f"q has {len(q)} rows, the batch {batch.num_rows}")
    heads, features = k.shape[1:]
    if not heads or not features or q.shape[1] % heads:
        raise ValueError(f"{q.shape[1]} query heads cannot share {heads} heads of {features} features evenly")
    num_pages = len(k_pages)
    expected = (num_pages, heads, features, PAGE_TOKENS), (num_pages, heads, PAGE_TOKENS, features)
    if (k_pages.shape, v_pages.shape) != expected or not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError(
            f"pages of shapes {list(k_pages.shape)} and {list(v_pages.shape)} are not {list(expected[0])} and "
            f"{list(expected[1])}, contiguous"
        )
    if batch.num_pages_needed > num_pages:
        raise ValueError(f"the batch uses page {batch.num_pages_needed - 1} and there are {num_pages}")
    if window is not None and window < 1:
        raise ValueError(f"a window of {window} tokens shows none")
    if q.dtype != k.dtype or k.dtype != v.dtype or k_pages.dtype != v_pages.dtype:
        raise ValueError("q, k and v must have one dtype, and both kinds of pages one")
    if any(t.device != q.device for t in (k, v, k_pages, v_pages)):
        raise ValueError("all tensors must lie on one device")
