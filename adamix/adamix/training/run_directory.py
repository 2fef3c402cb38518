"""The directory of one training run: what may be begun in it, what may be continued.

::

    OUT/run.json                 every setting and the digests of backbone and data, written first
    OUT/checkpoints/…            the last ones; a run stopped at any moment continues from the newest complete one
    OUT/mixture.safetensors      written last: its presence means the run is finished

Knows files and JSON; neither tensors nor training.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamix.errors import FailedPrecondition, InvalidConfig
from adamix.files import disk

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
_PREFIX = "checkpoint-"
_STATE_FILE = "trainer_state.json"


def open_run(out: Path, settings: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Begin a run in `out`, or continue the one that is there.

    Args:
        settings: nested JSON values; a run is continued only with the settings it was begun with.

    Returns:
        the newest complete checkpoint, or None to begin at step 0.

    Raises:
        FailedPrecondition: `out` is not empty and not resumed, or holds something that is no run.
        InvalidConfig: `out` is a file, or the settings differ from those of the run.
    """
    if out.exists() and not out.is_dir():
        raise InvalidConfig(f"{out} is a file; --out names a directory")
    # Under torchrun every process opens the run, but only the first one writes.
    is_writer = os.environ.get("RANK", "0") == "0"
    if is_writer and not resume and out.exists() and any(out.iterdir()):
        raise FailedPrecondition(f"{out} is not empty: continue its run with --resume, or name another directory")
    path = out / RUN_FILE
    if resume and path.exists():
        _compare(out, _read(path), settings)
        return newest_checkpoint(out)
    if resume and is_writer and out.exists() and any(out.iterdir()):
        raise FailedPrecondition(f"{out} holds no training run to continue")
    if is_writer:
        text = json.dumps(settings, indent=2, sort_keys=True)
        disk.write(path, text.encode())
    return None


def newest_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint. Its state file is written last, so one without it is a torso."""
    found = {}
    for path in (out / CHECKPOINTS).glob(f"{_PREFIX}*"):
        step = path.name.removeprefix(_PREFIX)
        if step.isdecimal() and _is_json(path / _STATE_FILE):
            found[int(step)] = path
    return found[max(found)] if found else None


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _compare(out: Path, begun: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    before, now = _flatten(begun), _flatten(json.loads(json.dumps(settings)))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            # Commands that continue by themselves land here too, so the message names the directory, not a flag.
            raise InvalidConfig(
                f"{out} was begun with other settings ({key} was {before.get(key)}, now {now.get(key)}): "
                "give the same ones, or another directory",
                field=key,
            )


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[prefix + key] = item
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise FailedPrecondition(f"{path} is damaged: the run cannot be continued")
    return settings


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
