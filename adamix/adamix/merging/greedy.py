"""Greedy merging (model soups, arXiv 2203.05482, recipe 1): an expert is added only where it does no harm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adamix.data import GenerationData, TaskType
from adamix.evaluation import labelled
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.mixture_file import MixtureFile
from adamix.generation import beam_search
from adamix.merging.rules import combine, weighted
from adamix.merging.samples import OnProgress, Samples
from adamix.merging.settings import MergeConfig

METRIC: dict[TaskType, str] = {"classification": "accuracy", "multilabel": "micro_f1", "regression": "pearson"}


@dataclass(frozen=True)
class Choice:
    """The chosen experts, best one first; the metric of their mean, and of each expert by itself.

    The metric is that of METRIC, or of texts the negative loss of the references.
    """

    experts: tuple[int, ...]
    score: float
    single: tuple[float, ...]


def choose(mixture: MixtureFile, samples: Samples, config: MergeConfig, on_progress: OnProgress) -> Choice:
    """Take experts in the order of their own metric, and keep each with which the metric of the mean does not fall.

    An expert is a number: it stands for the experts of that number in all projections. The result is never below the
    best single expert on the rows it was chosen on; which is why these should not be the rows it is tested on.
    """
    num_experts = mixture.manifest.num_experts
    total = len(samples.rows(mixture)) * (2 * num_experts - 1)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    def score(experts: Sequence[int]) -> float:
        data = combine(mixture, lambda projection: weighted(projection, members(experts, num_experts)), "greedy")
        return _score(adapter_file.decode(data), samples, config.batch_size, advance)

    single = tuple(score([expert]) for expert in range(num_experts))
    order = sorted(range(num_experts), key=lambda expert: -single[expert])
    chosen, best = [order[0]], single[order[0]]
    for expert in order[1:]:
        candidate = score([*chosen, expert])
        if candidate >= best:
            chosen, best = [*chosen, expert], candidate
    return Choice(tuple(chosen), best, single)


def _score(adapter: AdapterFile, samples: Samples, batch_size: int, on_rows: Callable[[int], None]) -> float:
    rows, reader = samples.data, (samples.backbone, samples.tokenizer)
    if isinstance(rows, GenerationData):
        return -beam_search.token_metrics(adapter, *reader, rows, batch_size=batch_size, on_rows=on_rows)["loss"]
    result = labelled.evaluate(adapter, *reader, rows, batch_size=batch_size, on_rows=on_rows)
    return result.metrics[METRIC[rows.task_type]]


def members(experts: Sequence[int], num_experts: int) -> list[float]:
    """Weights of 1 for these experts and 0 for the others."""
    return [float(expert in experts) for expert in range(num_experts)]
