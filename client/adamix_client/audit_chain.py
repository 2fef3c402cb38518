"""How entries of the audit hang together: each carries a sha256 over its content and the hash of the one before. Pure.

Whoever has all entries, from the catalog or from the server, can tell whether one was changed, removed or added.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

# The content of an entry, in the order in which it is hashed; the hash follows.
COLUMNS = (
    "id",
    "time_us",
    "tenant",
    "principal",
    "peer",
    "method",
    "resource",
    "digest",
    "code",
    "reason",
    "detail",
    "action",
    "revision",
)


def link(before: str, content: Sequence[Any]) -> str:
    """The hash of an entry, in hex.

    Args:
        before: hash of the entry before it.
        content: its columns.
    """
    # As JSON, since no two contents have the same.
    return hashlib.sha256(before.encode("ascii", "replace") + _encoded(content)).hexdigest()


def _encoded(content: Sequence[Any]) -> bytes:
    """Compact JSON in UTF-8: what the catalog has hashed from the first entry on."""
    return json.dumps(list(content), separators=(",", ":"), ensure_ascii=False).encode()
