"""Trains every way for a few steps, in turns, by the trainer's own `train`, and takes time and memory.

A step lasts from the end of one optimiser step to the end of the next: rows put together, routes drawn, forward,
backward, clipping, optimiser, schedule. All ways see the same rows in the same order.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from adamix.backbones import backbone as backbones
from adamix.config import HeadConfig, TrainingPlan
from adamix.data import Example, TaskData
from adamix.errors import InvalidConfig
from adamix.training import train as trainer
from adamix_bench.measure import Spread
from adamix_bench.serving.workbench import Workbench
from adamix_bench.serving.workload import draw_texts
from adamix_bench.training.memory import Memory, watched
from adamix_bench.training.settings import UNCOUNTED_STEPS, Settings
from adamix_bench.training.shapes import PREFIX, random_backbone
from adamix_bench.training.ways import Way

_LABELS = ("no", "yes")


@dataclass
class Found:
    """What is known of one way.

    Attributes:
        step_s: mean seconds of a step, one value a round.
        cpu_step_s: the same in time of the process on processors, all threads together: what other processes do on
            the machine hardly shows in it.
        parameters: trained in experts, of the one adapter they become, and trained in the head.
    """

    step_s: list[float] = field(default_factory=list)
    cpu_step_s: list[float] = field(default_factory=list)
    memory: Memory | None = None
    parameters: tuple[int, int, int] = (0, 0, 0)


class Bench:
    """A backbone, rows, and what trains on them.

    Raises:
        InvalidConfig: the backbone cannot be found, or takes fewer tokens than `max_length`.
    """

    def __init__(self, settings: Settings, device: str) -> None:
        self._settings = settings
        self._device = torch.device(device)
        if settings.backbone.startswith(PREFIX):
            backbone, tokenizer = random_backbone(settings.backbone)
            body: nn.Module = backbone.model
            body.to(self._device)
        else:
            backbone = backbones.load(settings.backbone, device=self._device)
            tokenizer = backbones.load_tokenizer(settings.backbone)
        self._workbench = Workbench(backbone, tokenizer, settings.seed)
        self._rows = self._draw_rows()
        self._head = HeadConfig(pooling="last" if backbone.family.is_decoder else "mean")

    @property
    def backbone_bytes(self) -> int:
        """Of the frozen body's weights, which all ways share."""
        return sum(p.numel() * p.itemsize for p in self._workbench.backbone.model.parameters())

    def train(self, way: Way, found: Found) -> None:
        """Train once and add the time of a step to what was found."""
        ends: dict[int, tuple[float, float]] = {}
        borders = (UNCOUNTED_STEPS, UNCOUNTED_STEPS + self._settings.steps)

        def clock(progress: trainer.Progress) -> None:
            if progress.step in borders:
                self._synchronise()
                ends[progress.step] = (time.perf_counter(), time.process_time())

        result = self._run(way, clock)
        wall_s, cpu_s = (end - start for start, end in zip(*(ends[border] for border in borders), strict=True))
        found.step_s.append(wall_s / self._settings.steps)
        found.cpu_step_s.append(cpu_s / self._settings.steps)
        found.parameters = (result.trained_parameters, result.merged_parameters, result.head_parameters)

    def take_memory(self, way: Way, found: Found) -> None:
        """Train once and see what is kept in memory."""
        with watched(self._workbench.backbone.model.parameters(), self._device) as memory:
            self._run(way, lambda _: None)
        found.memory = memory

    def _run(self, way: Way, clock: Callable[[trainer.Progress], None]) -> trainer.TrainResult:
        bench = self._workbench
        with tempfile.TemporaryDirectory(prefix="adamix-bench-") as directory:
            return trainer.train(
                TrainingPlan(adapter=way.adapter, mixture=way.mixture, head=self._head, train=self._settings.train),
                bench.backbone,
                bench.tokenizer,
                self._rows,
                None,
                Path(directory) / "run",
                callbacks=[clock],
            )

    def _draw_rows(self) -> TaskData:
        """A row for every place in every batch of a run, all equally long."""
        settings, bench = self._settings, self._workbench
        if settings.max_length > bench.backbone.spec.max_tokens:
            raise InvalidConfig(
                f"max_length {settings.max_length} is over the backbone's {bench.backbone.spec.max_tokens} positions",
                field="max_length",
            )
        random = np.random.default_rng(settings.seed)
        count = settings.batch_size * (UNCOUNTED_STEPS + settings.steps)
        special = bench.tokenizer.num_special_tokens_to_add()
        texts = draw_texts(bench.words, [settings.max_length] * count, special, random)
        examples = tuple(Example(text, index % len(_LABELS)) for index, text in enumerate(texts))
        return TaskData("bench", "classification", _LABELS, examples)

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def measure(
    bench: Bench, ways: Mapping[str, Way], rounds: int, found: dict[str, Found], say: Callable[[str], None]
) -> None:
    """Fill `found` round by round, so that a run that is cut short has the rounds before.

    Every other round runs backwards: what grows or fades while a round lasts then meets each way alike.
    """
    say("round 0: memory")
    memories = {name: Found() for name in ways}
    # What the process allocates once and for all is not the first way's.
    bench.take_memory(next(iter(ways.values())), Found())
    for name, way in ways.items():
        bench.take_memory(way, memories[name])
    found.update(memories)
    for turn in range(1, rounds + 1):
        say(f"round {turn} of {rounds}")
        order = list(ways) if turn % 2 else list(reversed(list(ways)))
        latest = {name: Found() for name in order}
        for name in order:
            bench.train(ways[name], latest[name])
        for name, result in latest.items():
            found[name].step_s += result.step_s
            found[name].cpu_step_s += result.cpu_step_s
            found[name].parameters = result.parameters


def over(found: Mapping[str, Found], name: str, peer: str, *, on_processors: bool = False) -> Spread | None:
    """Time of a step of one way over that of another, round by round; None before the first round.

    Args:
        on_processors: compare `cpu_step_s` instead of `step_s`.
    """
    if not found or not found[name].step_s:
        return None
    ours, theirs = (each.cpu_step_s if on_processors else each.step_s for each in (found[name], found[peer]))
    return Spread(tuple(ours)).over(Spread(tuple(theirs)))
