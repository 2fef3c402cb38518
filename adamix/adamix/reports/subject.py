"""What is reported on: a training directory or an adapter file, with everything that it says of itself.

Reads files; measures nothing and knows no page.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamix.data.corpora import CORPORA
from adamix.data.generation.synthetic import SYNTHETIC_E2E
from adamix.errors import InvalidAdapter
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.mixture_file import MixtureFile, read_mixture
from adamix.merging.merge import merge
from adamix.training.run_directory import RUN_FILE, newest_checkpoint

_STATE_FILE = "trainer_state.json"
_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Reading:
    """One reading of a training's progress; None is what was not read, or was no finite number."""

    step: int
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None


@dataclass(frozen=True)
class Subject:
    """A training or an adapter.

    Attributes:
        name: of the file or the directory, without its folders.
        adapter: as it is merged, by the mean where the source is a mixture.
        mixture: all experts; None of a file that is merged.
        settings: of the training, by dotted names; empty where only the adapter is there.
        readings: in the order of steps; empty where they are not kept.
    """

    name: str
    adapter: AdapterFile
    mixture: MixtureFile | None
    settings: Mapping[str, Any]
    readings: tuple[Reading, ...]

    @property
    def data_name(self) -> str:
        """What the training data are called; empty where nobody says."""
        data = self.adapter.manifest.training.data
        return data.rpartition(" (")[0] or data

    @property
    def packaged_data(self) -> str | None:
        """The data set that was trained on, if it can be had by its name alone."""
        return self.data_name if self.data_name in CORPORA or self.data_name == SYNTHETIC_E2E else None


def read_subject(source: Path) -> Subject:
    """Read a training directory, a mixture file or an adapter file.

    Raises:
        InvalidAdapter: the file is neither; the message says what it is.
        InvalidConfig: the directory holds no finished training.
        OSError: as usual.
    """
    name = source.resolve().name
    if not source.is_dir():
        try:
            return Subject(name, adapter_file.read(source), None, {}, ())
        except InvalidAdapter as error:
            if error.reason != "UNMERGED_MIXTURE":
                raise
    mixture = read_mixture(source)
    directory = source if source.is_dir() else source.parent
    return Subject(
        name=name,
        adapter=adapter_file.decode(merge(mixture)),
        mixture=mixture,
        settings=_settings(directory) if source.is_dir() else {},
        readings=_readings(directory) if source.is_dir() else (),
    )


def _settings(directory: Path) -> dict[str, Any]:
    found = _read_json(directory / RUN_FILE)
    flat: dict[str, Any] = {}
    for part, values in found.items():
        if isinstance(values, Mapping):
            flat |= {f"{part}.{name}": value for name, value in values.items()}
        else:
            flat[part] = values
    return flat


def _readings(directory: Path) -> tuple[Reading, ...]:
    """What the trainer logged, from the newest checkpoint, which has all of it since the beginning."""
    checkpoint = newest_checkpoint(directory)
    history = [] if checkpoint is None else _read_json(checkpoint / _STATE_FILE).get("log_history", [])
    found = []
    for entry in history if isinstance(history, list) else []:
        if not isinstance(entry, Mapping) or "loss" not in entry:
            continue
        step = _finite(entry.get("step"))
        if step is not None:
            numbers = [_finite(entry.get(name)) for name in ("loss", "learning_rate", "grad_norm")]
            found.append(Reading(int(step), *numbers))
    return tuple(found)


def _finite(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared with the largest double, beyond which a whole number becomes none.
    return float(value) if is_number and abs(value) <= sys.float_info.max else None  # type: ignore[arg-type]


def _read_json(path: Path) -> Mapping[str, Any]:
    """The object in a file; an empty one where there is none that can be read."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}
