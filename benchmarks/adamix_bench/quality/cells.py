"""One cell of the comparison: train on some rows of a task with one seed, and measure what came out.

A trained mixture is kept in the working directory, so that another method of the same training costs no second one.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean

from torch import nn
from transformers import PreTrainedTokenizerFast

from adamix import data
from adamix.backbones import backbone as backbones
from adamix.backbones.backbone import Backbone
from adamix.config import TrainingPlan
from adamix.errors import InvalidConfig
from adamix.files import disk
from adamix.files.mixture_file import MixtureFile, read_mixture
from adamix.routing.choice import parse_routing
from adamix.routing.probe import MixtureProbe
from adamix.training import train as trainer
from adamix_bench.quality.settings import QualitySettings, Rows
from adamix_bench.quality.store import RunStore
from adamix_bench.quality.trainings import ROUTED, TRAININGS, Choice

# The settings that a trained mixture depends on and its name in the working directory does not tell.
_TRAINED_BY = ("backbone", "layers", "batch_size", "max_length", "precision")


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

    Raises:
        InvalidConfig: the backbone or a corpus is too small for what the settings ask of it.
        InvalidData: a corpus is not installed; the message has the command.
    """

    def __init__(self, settings: QualitySettings, work: Path, device: str) -> None:
        self.settings = settings
        self._work = work
        self._backbone = _load(settings.backbone, settings.layers, device)
        self._tokenizer: PreTrainedTokenizerFast = backbones.load_tokenizer(settings.backbone)
        self._load = cache(data.load)
        self._check_sizes()

    def begin(self) -> None:
        """Say how the mixtures of the working directory are trained, or check that its earlier ones were trained so.

        Raises:
            InvalidConfig: they were trained with other settings.
        """
        protocol = self.settings.protocol()
        trained = RunStore(self._work / "trained.jsonl", self._work / "claims")
        trained.begin({name: protocol[name] for name in _TRAINED_BY}, flag="--work")

    def train(
        self, cell: Cell, choice: Choice, on_step: Callable[[trainer.Progress], None]
    ) -> tuple[MixtureFile, float]:
        """The trained mixture of a cell and the seconds its training took; from the working directory if there."""
        kept = self._work / f"{cell.key}-{choice.learning_rate:g}-{choice.steps}.safetensors"
        seconds_file = kept.with_suffix(".seconds")
        if not kept.exists():
            rows = self._load(cell.task, split="train")
            if cell.rows is not None:
                rows = data.few_shot(rows, cell.rows, cell.seed)
            training, out = TRAININGS[cell.training], kept.with_suffix(".run")
            shutil.rmtree(out, ignore_errors=True)
            config = self.settings.train_config(choice, cell.seed)
            plan = TrainingPlan(adapter=training.adapter, mixture=training.mixture, train=config)
            result = trainer.train(plan, self._backbone, self._tokenizer, rows, None, out, callbacks=[on_step])
            disk.write(seconds_file, f"{result.seconds:.3f}".encode())
            result.path.replace(kept)
            shutil.rmtree(out)
        return read_mixture(kept), float(seconds_file.read_text())

    def on_test(self, cell: Cell, mixture: MixtureFile) -> MixtureProbe:
        """A mixture on the whole test split, to be measured by one method after the other."""
        return MixtureProbe(mixture, self._backbone, self._tokenizer, self._load(cell.task, split="test"))

    def on_validation(self, cell: Cell, mixture: MixtureFile) -> MixtureProbe:
        """A mixture on some rows of the validation split, the same ones for every trial."""
        rows = self._load(cell.task, split="validation")
        if len(rows.examples) > self.settings.validation_rows:
            rows = data.few_shot(rows, self.settings.validation_rows, seed=0)
        return MixtureProbe(mixture, self._backbone, self._tokenizer, rows)

    def measure(self, probe: MixtureProbe, method: str) -> Outcome:
        """Score a method: a mean where it has several draws."""
        started = time.monotonic()
        metric = "pearson" if probe.data.task_type == "regression" else "accuracy"
        draws = tuple(
            probe.evaluate(parse_routing(routing), seed).metrics[metric] for routing, seed in self._draws(probe, method)
        )
        return Outcome(metric, fmean(draws), time.monotonic() - started, draws if method in ROUTED else ())

    def _check_sizes(self) -> None:
        """Refuse now what some cell would be refused for hours later."""
        settings, most = self.settings, self._backbone.spec.max_tokens
        if settings.max_length > most:
            raise InvalidConfig(
                f"--max-length {settings.max_length} is over the backbone's {most} positions", field="max_length"
            )
        for task, rows in (*product(settings.tasks, settings.rows), *settings.tuning_cells):
            if rows is not None:
                data.few_shot(self._load(task, split="train"), rows, seed=0)

    def _draws(self, probe: MixtureProbe, method: str) -> list[tuple[str, int]]:
        """The routings of a method, each with the seed of its routes: random ones, every expert in turn, or all."""
        if method == "random":
            return [("random", seed) for seed in range(self.settings.draws)]
        if method == "fixed":
            return [(f"fixed:{expert}", 0) for expert in range(probe.mixture.manifest.num_experts)]
        return [("ensemble" if method == "ensemble" else "merged", 0)]


def _load(name: str, layers: int | None, device: str) -> Backbone:
    """A backbone, or one that ends after its first layers."""
    whole = backbones.load(name, device=device)
    if layers is None:
        return whole
    body = whole.model
    path = whole.family.layers
    found = body.get_submodule(path)
    if not isinstance(found, nn.ModuleList) or layers > len(found):
        raise InvalidConfig(f"--layers {layers}: {name} has {whole.spec.num_layers} layers", field="layers")
    body.set_submodule(path, found[:layers])
    body.config.num_hidden_layers = layers
    return backbones.from_model(
        body, name=f"{name}, first {layers} layers", tokenizer_fingerprint=whole.spec.tokenizer_fingerprint
    )
