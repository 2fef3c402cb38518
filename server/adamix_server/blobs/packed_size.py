"""How much of an arena an adapter takes, from the sizes of its tensors alone.

What the engine lays out (`packing.py`), a front end can so tell without it: which adapters this server can never load.
"""

from collections.abc import Iterable

from adamix.errors import InvalidAdapter

# On which each tensor starts.
_ALIGNMENT_BYTES = 128
_MIB = 1 << 20


def padded(size: int, itemsize: int) -> int:
    """The values that a tensor of `size` values takes up, of `itemsize` bytes each."""
    alignment = _ALIGNMENT_BYTES // itemsize
    return -(-size // alignment) * alignment


def packed_bytes(tensor_sizes: Iterable[int], itemsize: int) -> int:
    """Bytes of an adapter in an arena. `tensor_sizes`: values of each tensor; `itemsize`: bytes of one there."""
    return itemsize * sum(padded(size, itemsize) for size in tensor_sizes)


def too_large_for_server(needed_bytes: int, arena_bytes: int) -> InvalidAdapter:
    """What is said of an adapter that no eviction makes room for."""
    return InvalidAdapter(
        f"the adapter takes {needed_bytes / _MIB:,.1f} MiB of memory for adapters, and this server has "
        f"{arena_bytes / _MIB:,.1f} MiB in all; start it with --arena-mib {-(-needed_bytes // _MIB)} or more, or make "
        "the adapter smaller",
        reason="ADAPTER_TOO_LARGE_FOR_SERVER",
    )
