"""Demo, steps a and b: train mixtures and baselines on few labels, merge each mixture into one file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.config import AdapterConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import TaskData, few_shot, load
from adamix.evaluation.labelled import Evaluation, evaluate
from adamix.files import adapter_file, disk
from adamix.files.adapter_file import AdapterFile
from adamix.merging import merge
from adamix.training import train as trainer

BACKBONE = "minilm"
SEED = 0


@dataclass(frozen=True)
class DemoTask:
    """One task: its corpus, how many labelled rows it learns from, and for how long."""

    name: str
    rows: int
    steps: int


TASKS = (
    DemoTask("trec", rows=300, steps=150),
    DemoTask("spam", rows=300, steps=50),
    DemoTask("movie-score", rows=300, steps=80),
)
# The second version of a task: the same recipe on more rows and for longer.
BETTER = DemoTask("trec", rows=1500, steps=250)
BASELINE_TASK = TASKS[0]
# One setting for all three tasks; a head alone wants, and gets, twice the rate.
LEARNING_RATE = 5e-3
HEAD_LEARNING_RATE = 1e-2
BATCH_SIZE = 8
MAX_LENGTH = 48


@dataclass(frozen=True)
class Trained:
    """One merged adapter, where it lies, and what it scored on the test split."""

    task: str
    method: str
    path: Path
    adapter: AdapterFile
    result: Evaluation
    rows: int
    seconds: float
    steps: int

    @property
    def metric(self) -> tuple[str, float]:
        """The one number to look at: accuracy, or Spearman's correlation of a regression."""
        name = "accuracy" if "accuracy" in self.result.metrics else "spearman"
        return name, self.result.metrics[name]


class DemoTrainer:
    """Trains into subdirectories of `out`. `on_progress(label, step, steps)` is called after every step."""

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerFast,
        out: Path,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._out = out
        self._on_progress = on_progress
        self._tests: dict[str, TaskData] = {}

    def adamix(self, task: DemoTask, version: str = "v1") -> Trained:
        """Four experts with a shared up projection, two routed passes a step, consistency loss, uniform merge."""
        return self._train(task, f"{task.name}-{version}", "adamix", AdapterConfig(), MixtureConfig())

    def single_adapter(self, task: DemoTask) -> Trained:
        return self._train(task, f"{task.name}-single", "single", AdapterConfig(), MixtureConfig.single())

    def head_only(self, task: DemoTask) -> Trained:
        return self._train(task, f"{task.name}-head", "head", AdapterConfig(sites=()), MixtureConfig.single())

    def test_split(self, name: str) -> TaskData:
        if name not in self._tests:
            self._tests[name] = load(name, split="test")
        return self._tests[name]

    def _train(
        self, task: DemoTask, label: str, method: str, adapter: AdapterConfig, mixture: MixtureConfig
    ) -> Trained:
        data = few_shot(load(task.name, split="train"), task.rows, SEED)
        config = TrainConfig(
            max_steps=task.steps,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE if adapter.sites else HEAD_LEARNING_RATE,
            max_length=MAX_LENGTH,
            seed=SEED,
            save_every=task.steps,
        )
        result = trainer.train(
            TrainingPlan(adapter=adapter, mixture=mixture, train=config),
            self._backbone,
            self._tokenizer,
            data,
            None,
            self._out / "runs" / label,
            callbacks=[lambda progress: self._on_progress(label, progress.step, progress.steps)],
        )
        path = self._out / "adapters" / f"{label}.safetensors"
        disk.write(path, merge.merge(result.path.parent))
        merged = adapter_file.read(path)
        evaluation = evaluate(merged, self._backbone, self._tokenizer, self.test_split(task.name))
        return Trained(task.name, method, path, merged, evaluation, len(data.examples), result.seconds, result.steps)
