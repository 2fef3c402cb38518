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

from typing import Literal

import torch
from torch import Tensor

from adamix_kernels import native
from adamix_kernels.paged_batch import PAGE_TOKENS, SCRATCH_PAGE, PagedBatch
from adamix_kernels.paged_torch import in_buckets, reference, write

__all__ = ["PAGE_TOKENS", "SCRATCH_PAGE", "PagedBatch", "paged_attention", "write"]

Implementation = Literal["reference", "torch", "native"]


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
    chosen = implementation or ("torch" if _why_not_native(q, k_pages) else "native")
    if chosen not in _FORMS:
        raise ValueError(f"paged_attention has no implementation {chosen!r}; it has: {', '.join(_FORMS)}")
    if not batch.num_rows:
        return torch.empty_like(q)
    return _FORMS[chosen](q, k, v, k_pages, v_pages, batch, scale, window)


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


_FORMS = {"reference": reference, "torch": in_buckets, "native": _native}
# Products of one query and one key, or value, in numbers.
_THREADS_PAY = 100_000


def _why_not_native(q: Tensor, k_pages: Tensor) -> str | None:
    """What keeps the native form from these tensors, or None."""
    if q.device.type != "cpu":
        return f"it is for CPUs, not {q.device.type}"
    if q.dtype != torch.float32 or k_pages.dtype != torch.float32:
        return f"it takes fp32, not {q.dtype} beside a cache of {k_pages.dtype}"
    return None if native.load() is not None else "it was not built, or is turned off"


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
