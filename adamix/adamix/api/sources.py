"""What functions take as data: a name or a path, as the command line does, or rows in memory."""

import os
from typing import Any

from adamix.data.memory import read_memory
from adamix.data.named import Source

Data = Any
"""A corpus, file, directory or `datasets` name; or rows in memory (`adamix.data.memory` says in which forms)."""


def source_of(data: Data) -> Source:
    """Raises InvalidData for what holds no rows."""
    return os.fspath(data) if isinstance(data, str | os.PathLike) else read_memory(data)
