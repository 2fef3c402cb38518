"""Kernels in C for CPUs, loaded if they were built: `python -m adamix_kernels.native.build`, which `make setup` runs.

Nothing is compiled while a program runs, unless `ADAMIX_NATIVE=build` asks for it; `ADAMIX_NATIVE=0` leaves the kernels
unused. Without them every op has its form in torch.
"""

import logging
import os
from functools import cache

from adamix_kernels.native.library import LARGEST_RANK, MOST_QUERIES, MOST_ROWS, BlockedBatch, Library

__all__ = ["LARGEST_RANK", "MOST_QUERIES", "MOST_ROWS", "BlockedBatch", "Library", "load"]

_log = logging.getLogger(__name__)


@cache
def load() -> Library | None:
    """The library, or None: it was not built, cannot be loaded (the log says why, once), or is not wanted."""
    # Here, because `python -m` of it would find it imported already.
    from adamix_kernels.native import build

    wanted = os.environ.get("ADAMIX_NATIVE", "")
    if wanted == "0":
        return None
    try:
        path = build.build() if wanted == "build" else build.find()
        if path is None:
            _log.info("no native kernels: python -m adamix_kernels.native.build makes them")
            return None
        return Library(path)
    except (build.BuildError, OSError, AttributeError) as error:
        _log.warning("no native kernels: %s", error)
        return None
