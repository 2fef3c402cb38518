"""One cell of the comparison: train on some rows of a task with one seed, and measure what came out.

A trained mixture is kept in the working directory, so that another method of the same training costs no second one.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from adamix import adapter_file, data, evaluation, trainer
from adamix import backbone as backbones
from adamix.backbone import Backbone
from adamix.config import HeadConfig, TrainConfig
from adamix.data import TaskData
from adamix.merge import MixtureFile, merge, read_mixture
from adamix_bench.quality.settings import QualitySettings, Rows
from adamix_bench.quality.trainings import TRAININGS, Choice


@dataclass(frozen=True)
class Cell:
    """A training of the comparison."""

    task: str
    rows: Rows
    seed: int
    training: str

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.task}-{'all' if self.rows is None else self.rows}-{self.seed}-{self.training}"


@dataclass(frozen=True)
class Outcome:
    """What a method scored. `draws` holds the single values where it is a mean."""

    metric: str
    value: float
    seconds: float
    draws: tuple[float, ...] = ()


class Laboratory:
    """The backbone and the texts of a run, loaded once; trains cells and measures methods.

    Args:
        work: directory of the trained mixtures and of runs that were cut short.
    """

    def __init__(self, settings: QualitySettings, work: Path) -> None:
        self.settings = settings
        self._work = work
        self._backbone: Backbone = backbones.load(settings.backbone)
        self._tokenizer: PreTrainedTokenizerFast = backbones.load_tokenizer(settings.backbone)
        self._load = cache(data.load)

    def train(
        self, cell: Cell, choice: Choice, on_step: Callable[[trainer.Progress], None]
    ) -> tuple[MixtureFile, float]:
        """The trained mixture of a cell, from the working directory if it is there, and the seconds its training took."""
        kept = self._work / f"{cell.key}-{choice.learning_rate:g}-{choice.steps}.safetensors"
        seconds_file = kept.with_suffix(".seconds")
        if not kept.exists():
            rows = self._load(cell.task, split="train")
            if cell.rows is not None:
                rows = data.few_shot(rows, cell.rows, cell.seed)
            training, out = TRAININGS[cell.training], kept.with_suffix(".run")
            shutil.rmtree(out, ignore_errors=True)
            result = trainer.train(
                self._backbone,
                self._tokenizer,
                rows,
                None,
                training.adapter,
                training.mixture,
                HeadConfig(),
                TrainConfig(
                    max_steps=choice.steps,
                    batch_size=self.settings.batch_size,
                    learning_rate=choice.learning_rate,
                    max_length=self.settings.max_length,
                    precision=self.settings.precision,  # type: ignore[arg-type]  # checked by the dataclass
                    seed=cell.seed,
                    save_every=choice.steps,
                ),
                out,
                callbacks=[on_step],
            )
            adapter_file.write(seconds_file, f"{result.seconds:.3f}".encode())
            result.path.replace(kept)
            shutil.rmtree(out)
        return read_mixture(kept), float(seconds_file.read_text())

    def measure(self, cell: Cell, mixture: MixtureFile, method: str) -> Outcome:
        """Score a method on the whole test split."""
        return self._score(mixture, method, self._load(cell.task, split="test"))

    def validate(self, cell: Cell, mixture: MixtureFile) -> Outcome:
        """Score the merged mixture on the first rows of the validation split."""
        rows = self._load(cell.task, split="validation")
        if len(rows.examples) > self.settings.validation_rows:
            rows = data.few_shot(rows, self.settings.validation_rows, seed=0)
        return self._score(mixture, "merged", rows)

    def _score(self, mixture: MixtureFile, method: str, rows: TaskData) -> Outcome:
        started = time.monotonic()
        metric = "pearson" if rows.task_type == "regression" else "accuracy"
        adapter = adapter_file.decode(merge(mixture))
        result = evaluation.evaluate(adapter, self._backbone, self._tokenizer, rows)
        return Outcome(metric, result.metrics[metric], time.monotonic() - started)
