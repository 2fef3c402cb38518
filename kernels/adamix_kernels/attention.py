"""Attention within each sequence of a packed batch: the op, its plain form, and the choice among its forms.

    out[t, h] = sum_u softmax_u(scale * q[t, h] . k[u, h']) v[u, h']        u in the sequence of t, h' = h // (Hq / Hkv)

Forms: `reference` is the definition; `triton` the kernel of `gpu/attention.py`, for every dtype and head; `torch` the
FlashAttention 2 that comes with torch, for fp16 and bf16 on CUDA. In all of them a row's result depends on nothing
outside its sequence, not even on values that are not finite. Versions 3 and 4 of FlashAttention, which a process can
activate, read past the end of a sequence and multiply what they find there by zero (Dao-AILab/flash-attention#2374), so
they are not used.

Shapes: T packed rows, S sequences, N tiles, Hq and Hkv heads of queries and of keys and values, E features of a head.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.torch_version import TorchVersion

Implementation = Literal["torch", "triton", "reference"]

UNUSED = -1
LARGEST_HEAD = 256
_HALF = (torch.float16, torch.bfloat16)
_DTYPES = (*_HALF, torch.float32)


@dataclass(frozen=True, eq=False)
class DeviceLayout:
    """A layout on a device, both parts views of one buffer that was uploaded in one copy.

    Attributes:
        tiles: int32 [N, 3], (first query row, first row of its sequence, end row of its sequence) of each block of
            queries; a first row of -1 is a tile that is set aside and not used.
        indptr: int32 [S + 1].
    """

    tiles: Tensor
    indptr: Tensor


@dataclass(frozen=True, eq=False)
class SequenceLayout:
    """Which rows of a packed batch are one sequence. Built on the host, uploaded once however many layers ask.

    Attributes:
        indptr: int64 [S + 1]: sequence s has the rows `indptr[s]:indptr[s + 1]`, possibly none.
        max_sequences: if given, what is uploaded has the size that the same number of rows in up to so many sequences
            needs: a CUDA graph then holds for all of these batches. At least S.
    """

    indptr: NDArray[np.int64]
    max_sequences: int | None = None
    _on_device: dict[tuple[torch.device, int], DeviceLayout] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], max_sequences: int | None = None) -> Self:
        """Sequences of these lengths, one after another.

        Raises:
            ValueError: a length is negative, or there are more than `max_sequences`.
        """
        sizes = np.asarray(lengths, dtype=np.int64)
        if sizes.min(initial=0) < 0:
            raise ValueError("lengths must not be negative")
        if max_sequences is not None and max_sequences < len(sizes):
            raise ValueError(f"{len(sizes)} sequences are more than max_sequences={max_sequences}")
        return cls(np.insert(np.cumsum(sizes), 0, 0), max_sequences)

    @property
    def num_rows(self) -> int:
        return int(self.indptr[-1])

    @cached_property
    def longest(self) -> int:
        return int(np.diff(self.indptr).max(initial=0))

    def tiles(self, block_rows: int) -> NDArray[np.int32]:
        """int32 [N, 3], see `DeviceLayout`. The tiles with most to read come first, so that no program starts late."""
        begin, end = self.indptr[:-1], self.indptr[1:]
        order = np.argsort(begin - end, kind="stable")
        begin, end = begin[order], end[order]
        blocks = -(-(end - begin) // block_rows)
        sequence = np.repeat(np.arange(len(blocks)), blocks)
        block = np.arange(len(sequence)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        used = np.stack([begin[sequence] + block * block_rows, begin[sequence], end[sequence]], axis=1).astype(np.int32)
        if self.max_sequences is None:
            return used
        capacity = self.num_rows // block_rows + min(self.max_sequences, self.num_rows)
        unused = np.full((capacity - len(used), 3), UNUSED, np.int32)
        return np.concatenate([used, unused])

    def on(self, device: torch.device, block_rows: int) -> DeviceLayout:
        """The layout on a device, in tiles of `block_rows` queries. Does not wait for the device."""
        found = self._on_device.get((device, block_rows))
        if found is None:
            tiles = self.tiles(block_rows)
            missing = 0 if self.max_sequences is None else self.max_sequences + 1 - len(self.indptr)
            indptr = np.pad(self.indptr, (0, missing), mode="edge").astype(np.int32)
            host = torch.from_numpy(np.concatenate([tiles.ravel(), indptr]))
            if device.type == "cuda":
                host = host.pin_memory()
            buffer = host.to(device, non_blocking=True)
            found = DeviceLayout(buffer[: tiles.size].view(-1, 3), buffer[tiles.size :])
            self._on_device[device, block_rows] = found
        return found


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SequenceLayout,
    *,
    causal: bool = False,
    scale: float | None = None,
    allow_tf32: bool = False,
    implementation: Implementation | None = None,
) -> Tensor:
    """Attention of every row to the rows of its own sequence; with `causal` to none behind it.

    Args:
        q: [T, Hq, E], fp32, fp16 or bf16; any strides, best with the features of a head together. E is at most 256.
        k, v: [T, Hkv, E] in the same dtype, Hq a multiple of Hkv: neighbouring query heads share one of theirs.
        layout: of the T rows.
        scale: factor on the scores; None is `E ** -0.5`.
        allow_tf32: fp32 products may round their operands to TF32. Matters to `triton` alone.
        implementation: None takes the first that can: `torch`, `triton` on CUDA, `reference` elsewhere, and the
            `reference` where autograd records.

    Returns:
        [T, Hq, E].

    Raises:
        ValueError: the tensors do not fit each other or the layout, or the implementation cannot compute this here.
    """
    _check(q, k, v, layout)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = _default(q, k, v, causal=causal) if implementation is None else implementation
    if chosen == "reference":
        return reference(q, k, v, layout, causal=causal, scale=scale)
    if chosen == "torch":
        return _torch(q, k, v, layout, causal=causal, scale=scale)
    if chosen == "triton":
        return _triton(q, k, v, layout, causal=causal, scale=scale, allow_tf32=allow_tf32)
    raise ValueError(f"varlen_attention has no implementation {chosen!r}; it has: torch, triton, reference")


def reference(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, causal: bool, scale: float) -> Tensor:
    """One sequence after another, in at least fp32 and rounded at the end; on any device, autograd follows."""
    group, wide = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    out = []
    for part in map(slice, layout.indptr[:-1].tolist(), layout.indptr[1:].tolist()):
        queries, keys, values = (t[part].transpose(0, 1).to(wide) for t in (q, k, v))
        keys, values = (t.repeat_interleave(group, 0) for t in (keys, values))
        scores = scale * queries @ keys.transpose(1, 2)
        if causal:
            behind = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(behind, -torch.inf)
        out.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(out).to(q.dtype) if out else torch.empty_like(q)


def _default(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Implementation:
    records = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if not q.is_cuda or records:
        return "reference"
    return "triton" if _why_not_flash(q, k, v, causal=causal) else "torch"


def _triton(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, causal: bool, scale: float, allow_tf32: bool
) -> Tensor:
    from adamix_kernels.gpu import attention as kernels

    if q.dtype not in _DTYPES:
        raise ValueError(f"the kernel of varlen_attention takes fp32, fp16 and bf16, not {q.dtype}")
    if not (q.is_cuda or kernels.INTERPRETED):
        raise ValueError("the kernel of varlen_attention needs a CUDA device, or TRITON_INTERPRET=1 from the start")
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    block_rows = kernels.plan_for(q.element_size(), q.shape[-1], _precision(allow_tf32=allow_tf32)).block_m
    result: Tensor = torch.ops.adamix.varlen_attention(
        q, k, v, layout.on(q.device, block_rows).tiles, causal, scale, allow_tf32
    )
    return result


def _precision(*, allow_tf32: bool) -> str:
    return "tf32" if allow_tf32 else "ieee"


@torch.library.custom_op("adamix::varlen_attention", mutates_args=())
def _launch(q: Tensor, k: Tensor, v: Tensor, tiles: Tensor, causal: bool, scale: float, allow_tf32: bool) -> Tensor:
    """The kernel on every tile and head; [T, Hq, E], contiguous. Rows of no tile are left as they are: undefined.

    Args:
        q, k, v: as for `varlen_attention`, with a feature stride of 1.
        tiles: int32 [N, 3], as tall as the plan for this dtype and head wants.
    """
    from adamix_kernels.gpu import attention as kernels
    from adamix_kernels.gpu.launch import on_device_of

    num_heads, head_size = q.shape[1:]
    out = q.new_empty(q.shape)
    precision = _precision(allow_tf32=allow_tf32)
    plan = kernels.plan_for(q.element_size(), head_size, precision)
    if len(tiles):
        with on_device_of(q):
            kernels.varlen[(len(tiles) * num_heads,)](
                out,
                q,
                k,
                v,
                tiles,
                HEADS=num_heads,
                GROUP=num_heads // k.shape[1],
                OUT_STRIDE=out.stride(0),
                Q_STRIDE=q.stride(0),
                Q_HEAD=q.stride(1),
                K_STRIDE=k.stride(0),
                K_HEAD=k.stride(1),
                V_STRIDE=v.stride(0),
                V_HEAD=v.stride(1),
                SCALE=scale,
                CAUSAL=causal,
                **plan.constexprs(head_size),
                PRECISION=precision,
                INTERPRETED=kernels.INTERPRETED,
                num_warps=plan.num_warps,
                num_stages=plan.num_stages,
            )
    return out


@_launch.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, tiles: Tensor, causal: bool, scale: float, allow_tf32: bool) -> Tensor:  # noqa: ARG001
    return q.new_empty(q.shape)


def _torch(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, causal: bool, scale: float) -> Tensor:
    function, _ = _varlen_attn()
    keywords = _keywords(causal=causal, scale=scale, grouped=q.shape[1] != k.shape[1])
    reason = _why_not_flash(q, k, v, causal=causal)
    if reason or function is None or keywords is None:
        raise ValueError(f"varlen_attn of torch cannot compute this: {reason}")
    # Tiles are the kernel's; of the height of the longest sequence, there are fewest.
    indptr = layout.on(q.device, max(layout.longest, 1)).indptr
    return function(q, k, v, indptr, indptr, layout.longest, layout.longest, **keywords)


def flash_keywords(
    parameters: Mapping[str, Any] | Iterable[str], *, causal: bool, scale: float, grouped: bool
) -> dict[str, Any] | None:
    """The keywords that make a version of `varlen_attn` with these parameters compute this; None if none do.

    The first versions had `is_causal` alone; then came `scale` and `window_size`, with torch 2.12 `enable_gqa`.
    """
    known = set(parameters)
    keywords: dict[str, Any] = {"scale": scale}
    if causal:
        keywords |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if grouped:
        keywords["enable_gqa"] = True
    if not keywords.keys() <= known:
        return None
    # A sum in parts would have an order that depends on the longest sequence of the batch. FlashAttention 2 takes the
    # parameter since torch 2.13 (pytorch/pytorch#179760); before, it did not split a call without pages.
    if "num_splits" in known and TorchVersion(torch.__version__) >= TorchVersion("2.13"):
        keywords["num_splits"] = 1
    return keywords


@lru_cache(maxsize=64)
def _keywords(*, causal: bool, scale: float, grouped: bool) -> dict[str, Any] | None:
    """Those of the `varlen_attn` that is installed. Asked twice in every layer, and slow to find out."""
    return flash_keywords(_varlen_attn()[1], causal=causal, scale=scale, grouped=grouped)


def _why_not_flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> str | None:
    """What keeps FlashAttention 2 from these tensors on this device, or None."""
    if not q.is_cuda or torch.version.hip is not None:
        return "it needs an NVIDIA device"
    if q.dtype not in _HALF:
        return f"it takes fp16 and bf16, not {q.dtype}"
    if q.shape[-1] % 8:
        return f"heads of {q.shape[-1]} features are not a multiple of 8"
    if any(t.stride(-1) != 1 or t.storage_offset() % 8 or any(s % 8 for s in t.stride()[:-1]) for t in (q, k, v)):
        return "rows are not aligned to 16 bytes"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "the device is older than sm80"
    function, _ = _varlen_attn()
    if function is None or not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without it"
    if _keywords(causal=causal, scale=1.0, grouped=q.shape[1] != k.shape[1]) is None:
        return f"varlen_attn of torch {torch.__version__} lacks a keyword"
    active = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()
    return None if active is None else f"{active} is active, which lets values of other sequences through"


@cache
def _varlen_attn() -> tuple[Callable[..., Tensor] | None, frozenset[str]]:
    """`torch.nn.attention.varlen.varlen_attn`, if this torch has it, and the names of its parameters."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None, frozenset()
    function: Callable[..., Any] = varlen.varlen_attn
    return function, frozenset(inspect.signature(function).parameters)


def _check(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout) -> None:
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[::2] != k.shape[::2]:
        shapes = ", ".join(str(list(t.shape)) for t in (q, k, v))
        raise ValueError(f"q, k and v of shapes {shapes} do not fit together as [rows, heads, features]")
    if len(q) != layout.num_rows:
        raise ValueError(f"q has {len(q)} rows, the layout {layout.num_rows}")
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} heads of keys and values evenly")
    if not 1 <= q.shape[2] <= LARGEST_HEAD:
        raise ValueError(f"heads have {q.shape[2]} features; 1 to {LARGEST_HEAD} are possible")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError("q, k and v must have one dtype and lie on one device")
