"""Measure an adapter, or the mixture that it is made of, on rows that are named: for the command and for programs.

Loads the rows and the backbone; nothing here prints, draws or writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adamix.backbones.backbone import device_name, load_tokenizer
from adamix.data import TASK_TYPES, GenerationData, TaskData, load_generation
from adamix.data.memory import MemoryData
from adamix.data.named import Source, load_rows
from adamix.errors import InvalidData
from adamix.evaluation import labelled
from adamix.evaluation.labelled import Evaluation
from adamix.experiments.run import Backbones
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import HeadSpec
from adamix.files.mixture_file import MixtureFile
from adamix.generation.evaluation import TextEvaluation, evaluate_texts
from adamix.routing import report as reports
from adamix.routing.choice import Routing
from adamix.routing.probe import MixtureProbe
from adamix.routing.report import DrawsReport, EnsembleReport
from adamix.routing.text_probe import TextProbe, TokenEvaluation, Writing

OnProgress = Callable[[int, int], None]
"""Called with (rows done, rows in all), a row being counted for each time that it passes through the backbone."""
MERGED = Routing()
Report = DrawsReport[Any] | EnsembleReport[Any]


@dataclass(frozen=True)
class Asked:
    """What is measured, and how.

    Attributes:
        backbone: None is the one that the adapter names.
        seeds: random routes, of a routing that draws them.
        subset: of WebNLG's categories.
        writing: how texts are generated; None of routes through a mixture predicts the references alone.
    """

    data: Source
    split: str
    backbone: str | None = None
    routing: Routing = MERGED
    seeds: int = 0
    batch_size: int = labelled.DEFAULT_BATCH_SIZE
    device: str = "auto"
    subset: str | None = None
    writing: Writing | None = None

    def backbone_of(self, adapter: AdapterFile) -> str:
        return self.backbone or adapter.manifest.backbone.name


def check_labels(head: HeadSpec) -> None:
    """Raise InvalidData unless the answers of a head can be compared with labels."""
    if head.type not in (*TASK_TYPES, "cloze"):
        raise InvalidData(
            f"this adapter's head is {head.type}, which has no labels to compare with; "
            f"evaluated are {', '.join(TASK_TYPES)}"
        )


def measure_labels(
    adapter: AdapterFile, mixture: MixtureFile | None, asked: Asked, backbones: Backbones, on_progress: OnProgress
) -> tuple[Evaluation, Report | None, TaskData]:
    """Of several draws the first one's answers, what there is to report beside them, and the rows.

    Raises:
        As `labelled.evaluate` and `data.load`.
    """
    head = adapter.manifest.head
    check_labels(head)
    rows = load_rows(asked.data, split=asked.split, task_type=labelled.label_type(head))
    if not isinstance(rows, TaskData):
        raise InvalidData(f"{rows.name} has no labels")
    name = asked.backbone_of(adapter)
    loaded = backbones.load(name, device_name(asked.device), language_model=head.type == "cloze")
    tokenizer, size = load_tokenizer(name), asked.batch_size
    if mixture is None:
        on_rows = _counting(on_progress, len(rows.examples))
        return labelled.evaluate(adapter, loaded, tokenizer, rows, batch_size=size, on_rows=on_rows), None, rows
    probe = MixtureProbe(mixture, loaded, tokenizer, rows, batch_size=size)
    passes = reports.num_passes(probe, asked.routing, asked.seeds)
    probe.on_rows = _counting(on_progress, len(rows.examples) * passes)
    result, report = reports.measure(probe, asked.routing, asked.seeds)
    return result, report, rows


def measure_texts(
    adapter: AdapterFile, mixture: MixtureFile | None, asked: Asked, backbones: Backbones, on_progress: OnProgress
) -> tuple[TokenEvaluation | TextEvaluation, Report | None, GenerationData]:
    """Of several draws the first one's texts or predictions, what there is to report beside them, and the sources.

    An adapter generates a text for every source; by routes that takes many times as long, and happens on demand.

    Raises:
        As `evaluate_texts`, `TextProbe.evaluate` and `load_generation`.
    """
    subset = asked.subset or "all"
    if isinstance(asked.data, MemoryData):
        sources = asked.data.generation(asked.split, subset)
    else:
        sources = load_generation(asked.data, split=asked.split, subset=subset)
    name = asked.backbone_of(adapter)
    loaded = backbones.load(name, device_name(asked.device), language_model=True)
    tokenizer, size, writing = load_tokenizer(name), asked.batch_size, asked.writing
    num_sources = len(sources.examples)
    if mixture is None:
        how = writing or Writing()
        on_rows = _counting(on_progress, num_sources)
        texts = evaluate_texts(
            adapter, loaded, tokenizer, sources, how.decoding, style=how.style, batch_size=size, on_rows=on_rows
        )
        return texts, None, sources
    probe = TextProbe(mixture, loaded, tokenizer, sources, batch_size=size, writing=writing)
    a_pass = num_sources if writing else sum(len(example.references) for example in sources.examples)
    probe.on_rows = _counting(on_progress, a_pass * reports.num_passes(probe, asked.routing, asked.seeds))
    result, report = reports.measure_texts(probe, asked.routing, asked.seeds)
    return result, report, sources


def _counting(on_progress: OnProgress, total: int) -> Callable[[int], None]:
    done = 0

    def on_rows(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    return on_rows
