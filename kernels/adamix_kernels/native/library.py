"""The kernels of this folder as functions of tensors: checks nothing, its callers do, and chooses nothing.

One pool of threads: the library takes the OpenMP runtime that torch has loaded, and as many threads of it as
`torch.get_num_threads()` says.

Shapes: T rows, S sequences, N blocks, P pages, Hq and Hkv heads, E features of a head, D features.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Of `kernels.h`.
PAGE_TOKENS, MOST_QUERIES, MOST_ROWS, LARGEST_RANK = 16, 6, 4, 1024

_POINTER, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
# Best first.
VARIANTS = ("avx512", "avx2", "plain")
_TORCH_LIBRARY = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("indptr", "starts", "table")),
        ("table_width", _COUNT),
        *((name, _POINTER) for name in ("places", "blocks")),
        *((name, _COUNT) for name in ("num_blocks", "has_chunks", "scores_width")),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.POINTER(_Batch)),
        *((name, _POINTER) for name in ("out", "q", "k", "v", "k_pages", "v_pages")),
        *((name, _COUNT) for name in ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")),
        *((name, _COUNT) for name in ("query_heads", "heads", "size")),
        ("scale", _NUMBER),
        ("window", _COUNT),
        ("scores", _POINTER),
    )


class BlockedBatch:
    """Where the sequences of a step lie, as the library reads it: made once, for all layers.

    Args:
        indptr, starts, table, places: as in `PagedBatch`.
        blocks: int32 [N, 3], (sequence, first row, rows) of what one thread computes at a time: at most `MOST_QUERIES`
            queries of a head of keys, or one row.
        has_chunks: whether some sequence has more than one row.
        longest: tokens of the longest sequence.
    """

    def __init__(
        self,
        *,
        indptr: NDArray[np.int64],
        starts: NDArray[np.int64],
        table: NDArray[np.int32],
        places: NDArray[np.int64],
        blocks: NDArray[np.int32],
        has_chunks: bool,
        longest: int,
    ) -> None:
        self.scores_width = -(-longest // PAGE_TOKENS) * PAGE_TOKENS
        # What the pointers below point to lives as long as they do.
        self._arrays = tuple(np.ascontiguousarray(each) for each in (indptr, starts, table, places, blocks))
        pointers = [each.ctypes.data for each in self._arrays]
        self._struct = _Batch(*pointers[:3], table.shape[1], *pointers[3:], len(blocks), has_chunks, self.scores_width)
        self.pointer = ctypes.pointer(self._struct)


class _Adaptation(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("out", "residual", "source")),
        *((name, _COUNT) for name in ("out_row", "residual_row", "source_row", "features", "source_features")),
        *((name, _POINTER) for name in ("slot", "first", "end", "table", "base")),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("out", "x", "weight")),
        *((name, _COUNT) for name in ("out_row", "x_row", "features")),
        ("eps", _NUMBER),
    )


class _Gate(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("out", "gate", "up")),
        *((name, _COUNT) for name in ("out_row", "gate_row", "up_row", "features")),
    )


class Library:
    """The shared library at `path`. Every tensor is fp32 on the CPU, its last dimension contiguous.

    Raises:
        OSError: it cannot be loaded here.
        AttributeError: it is another library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = ctypes.CDLL(str(path))
        self._use_kernels = found.adamix_use_kernels
        self._use_kernels.argtypes, self._use_kernels.restype = [ctypes.c_char_p], ctypes.c_int
        self._attend = found.adamix_paged_attention
        self._attend.argtypes = [ctypes.POINTER(_Attention), ctypes.c_int]
        self._adapt = found.adamix_adapt
        self._adapt.argtypes, self._adapt.restype = [ctypes.POINTER(_Adaptation), _COUNT, ctypes.c_int], ctypes.c_int
        self._rms_norm = found.adamix_rms_norm
        self._rms_norm.argtypes = [ctypes.POINTER(_Norm), _COUNT, ctypes.c_int]
        self._silu_mul = found.adamix_silu_mul
        self._silu_mul.argtypes = [ctypes.POINTER(_Gate), _COUNT, ctypes.c_int]
        for function in (self._attend, self._rms_norm, self._silu_mul):
            function.restype = None
        self.has_threads = self._use_threads(found.adamix_use_threads)
        self.variant = next(name for name in VARIANTS if self.use_kernels(name))

    def use_kernels(self, variant: str) -> bool:
        """Compute with the kernels for a set of instructions; False, and no change, if that cannot be."""
        if not self._use_kernels(variant.encode()):
            return False
        self.variant = variant
        return True

    @staticmethod
    def _use_threads(use: "ctypes._FuncPointer") -> bool:
        """Give the library torch's own threads; False if torch has no OpenMP runtime that can be found."""
        use.argtypes, use.restype = [_POINTER], None
        torch_library = Path(torch.__file__).parent / "lib" / _TORCH_LIBRARY
        try:
            # A library's symbols are looked up in whatever it depends on, too: this is the runtime that torch calls.
            parallel = ctypes.CDLL(str(torch_library)).GOMP_parallel
        except (OSError, AttributeError):
            return False
        use(ctypes.cast(parallel, _POINTER))
        return True

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        batch: BlockedBatch,
        *,
        scale: float,
        window: int,
        threads: int,
    ) -> Tensor:
        """Write k and v to their places and attend; see `paged.paged_attention`. A window of 0 is none.

        Returns:
            [T, Hq, E].
        """
        out = q.new_empty(q.shape)
        scores = torch.empty(threads * MOST_QUERIES * batch.scores_width)
        work = _Attention(
            batch.pointer,
            out.data_ptr(),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            q.shape[1],
            *k.shape[1:],
            scale,
            window,
            scores.data_ptr(),
        )
        self._attend(work, threads)
        return out

    def adapt(
        self,
        out: Tensor,
        residual: Tensor,
        source: Tensor,
        *,
        slot: NDArray[np.int32],
        first: NDArray[np.int32],
        end: NDArray[np.int32],
        table: Tensor,
        base: Tensor,
    ) -> bool:
        """`out = residual + A(source)` on every row of the blocks; other rows are left as they are.

        Args:
            out, residual: [T, D]; `residual` may be `out`.
            source: [T, D'], may be `out`.
            slot, first, end: int32 [N], as in `TileMap`, of at most `MOST_ROWS` rows.
            table, base: as in `Records`.

        Returns:
            False, and nothing was done, if an adapter's rank is larger than `LARGEST_RANK`.
        """
        work = _Adaptation(
            out.data_ptr(),
            residual.data_ptr(),
            source.data_ptr(),
            out.stride(0),
            residual.stride(0),
            source.stride(0),
            out.shape[1],
            source.shape[1],
            slot.ctypes.data,
            first.ctypes.data,
            end.ctypes.data,
            table.data_ptr(),
            base.data_ptr(),
        )
        return not self._adapt(work, len(slot), torch.get_num_threads())

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`weight * x / sqrt(mean(x^2) + eps)` of each row of x [T, D]; a new tensor."""
        rows, features = x.shape
        out = torch.empty(rows, features)
        work = _Norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), features, x.stride(0), features, eps)
        self._rms_norm(work, rows, torch.get_num_threads())
        return out

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """`silu(gate) * up`, both [T, D]; a new tensor."""
        rows, features = gate.shape
        out = torch.empty(rows, features)
        work = _Gate(out.data_ptr(), gate.data_ptr(), up.data_ptr(), features, gate.stride(0), up.stride(0), features)
        self._silu_mul(work, rows, torch.get_num_threads())
        return out
