"""Keep the C heap from giving memory back between two forward passes.

glibc returns large freed blocks to the system at once and asks for them again a moment later; each page then faults
in anew. A forward pass of a small encoder on a CPU spends a tenth of its time on that.
"""

import ctypes
import sys

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Make this process reuse what it frees, up to 1 GiB a block; returns whether its C library can do that.

    Resident memory then stays at its peak instead of falling between batches.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _BYTES)) and bool(mallopt(_M_MMAP_THRESHOLD, _BYTES))
