"""What was measured, kept line by line, so that a run that was cut short goes on where it stopped.

One JSON object a line: `key` says what was measured and with what, `found` the outcome. Lines are appended and never
changed; of two with one key, the later counts. A line that was cut off or damaged is not read. Knows no torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import adamix_kernels

_MEASURED = (
    "gpu/activations.py",
    "gpu/low_rank.py",
    "gpu/launch.py",
    "gpu/tiles.py",
    "gpu/ops.py",
    "cpu.py",
    "reference.py",
)
_MEASURING = ("batches.py", "cells.py", "clocks.py", "forms.py")


class Store:
    """The lines of one file; its directory is made when something is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # neither JSON nor, perhaps, text
                    continue
                if isinstance(entry, dict) and all(isinstance(entry.get(name), dict) for name in ("key", "found")):
                    self._found[_canonical(entry["key"])] = entry["found"]

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return self._found.get(_canonical(key))

    def keep(self, key: dict[str, Any], found: dict[str, Any]) -> None:
        self._found[_canonical(key)] = found
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A line that was cut off must not swallow the next one.
        is_cut = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if is_cut else "") + json.dumps({"key": key, "found": found}) + "\n")


def sources_digest() -> str:
    """First 12 digits of sha256 over what is measured and what measures: a number is only as old as they are."""
    package, here = Path(adamix_kernels.__file__).parent, Path(__file__).parent
    files = [*(package / name for name in _MEASURED), *(here / name for name in _MEASURING)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def slug(name: str) -> str:
    """A name as a directory: small letters, digits and hyphens."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return "-".join(part for part in kept.split("-") if part) or "device"


def _canonical(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
