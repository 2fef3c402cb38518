"""The few-shot protocol: K labelled rows in all, several seeds, no rows to choose a model by, mean and deviation.

As the paper's Table 6 has it (|K| = 30, 5 seeds): a seed draws the rows and trains on them for a fixed length; its last
step counts, merged and measured on held-out rows. Knows how one seed is measured and how several are summed up; how one
is trained is the caller's.

::

    OUT/seed-0/…                     the run of one seed (`training/run_directory.py`)
    OUT/seed-0/adapter.safetensors   its merged adapter
    OUT/seed-0/result.json           what that one did; one that was measured already is not measured again
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import TaskData
from adamix.evaluation import labelled
from adamix.files import adapter_file, disk
from adamix.merging.merge import merge

ADAPTER_FILE = "adapter.safetensors"
RESULT_FILE = "result.json"


class SeedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One seed of a few-shot experiment.

    Attributes:
        digest: of the merged adapter.
        held_out: sha256 of the rows it was measured on.
        rows: their number.
        metrics: see `metrics.score`.
    """

    seed: int
    digest: str
    held_out: str
    rows: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of every metric over seeds; there is no deviation of a single one."""

    mean: dict[str, float]
    std: dict[str, float | None]


def run_directory(out: Path, seed: int) -> Path:
    """Where the run of one seed lies."""
    return out / f"seed-{seed}"


def measure(
    directory: Path, seed: int, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, held_out: TaskData
) -> SeedResult:
    """Merge the finished run of one seed and measure it, unless that has been done.

    Raises:
        as `merge` and `labelled.evaluate`.
    """
    adapter = adapter_file.decode(data := merge(directory))
    rows = _digest(held_out)
    known = _read(directory / RESULT_FILE)
    if known is not None and (known.seed, known.digest, known.held_out) == (seed, adapter.digest, rows):
        return known
    disk.write(directory / ADAPTER_FILE, data)
    found = labelled.evaluate(adapter, backbone, tokenizer, held_out)
    result = SeedResult(seed=seed, digest=adapter.digest, held_out=rows, rows=found.rows, metrics=found.metrics)
    disk.write(directory / RESULT_FILE, msgspec.json.format(msgspec.json.encode(result)))
    return result


def summarise(results: Sequence[SeedResult]) -> Summary:
    """Sum up at least one seed, by the metrics that all of them have."""
    names = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
    values = {name: [result.metrics[name] for result in results] for name in names}
    mean = {name: math.fsum(found) / len(found) for name, found in values.items()}
    return Summary(mean, {name: _deviation(found, mean[name]) for name, found in values.items()})


def _deviation(values: Sequence[float], mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _read(path: Path) -> SeedResult | None:
    """The result of an earlier call; None where there is none or it is damaged, for it can be had again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SeedResult)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _digest(data: TaskData) -> str:
    rows = json.dumps([(e.text, e.pair, e.label) for e in data.examples])
    return hashlib.sha256(rows.encode()).hexdigest()
