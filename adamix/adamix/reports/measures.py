"""What a report measures: the merged adapter on rows, and, of a mixture, the routes through it.

Loads nothing by name and knows no page. Every row passes through the backbone once for the adapter, once for each
random route, and once for each path of one expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import GenerationData, TaskData
from adamix.errors import AdamixError
from adamix.evaluation import labelled
from adamix.generation import beam_search
from adamix.generation.decoding import Decoding
from adamix.reports.labels import LabelReport, report_labels
from adamix.reports.subject import Subject
from adamix.routing.choice import Routing
from adamix.routing.probe import MixtureProbe
from adamix.routing.report import DrawsReport, Probe, Summary, report_draws
from adamix.routing.text_probe import TextProbe

NUM_TEXTS = 5
RANDOM = Routing("random")
ENSEMBLE = Routing("ensemble", average="probabilities")


@dataclass(frozen=True)
class Written:
    """A text that the adapter wrote for a source, the likeliest token each time, beside one of its references."""

    source: str
    reference: str
    text: str


@dataclass(frozen=True)
class RouteReport:
    """The metrics of other routes than the merged adapter.

    Attributes:
        experts: of each path of one expert, in their order.
        ensemble: of the mean probabilities over these.
        draws: of random routes; None where none were drawn.
    """

    experts: tuple[dict[str, float], ...]
    ensemble: dict[str, float]
    draws: DrawsReport[Any] | None

    @property
    def summary(self) -> dict[str, Summary]:
        return {} if self.draws is None else self.draws.summary()


@dataclass(frozen=True)
class Measures:
    """What was measured.

    Attributes:
        metrics: of the merged adapter.
        rows, truncated: how many there were, and how many of these were cut.
        labels: None of texts.
        routes: None of a file that is merged.
        texts: of a decoder.
        failure: why no text was written, where some should have been.
    """

    data: str
    split: str
    is_synthetic: bool
    metrics: dict[str, float]
    rows: int
    truncated: int
    labels: LabelReport | None
    routes: RouteReport | None
    texts: tuple[Written, ...] = ()
    failure: str = ""


def measure(
    subject: Subject,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    data: TaskData | GenerationData,
    split: str,
    *,
    seeds: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> Measures:
    """Measure on the rows of one split. Raises as `labelled.evaluate` and `beam_search.token_metrics`."""
    num_paths = 0 if subject.mixture is None else _num_paths(subject)
    num_passes = 1 + (0 if subject.mixture is None else num_paths + seeds)
    a_pass = (
        len(data.examples) if isinstance(data, TaskData) else sum(len(example.references) for example in data.examples)
    )
    done = 0

    def on_rows(count: int) -> None:
        nonlocal done
        done += count
        on_progress(min(done, num_passes * a_pass), num_passes * a_pass)

    if isinstance(data, GenerationData):
        return _of_texts(subject, backbone, tokenizer, data, split, seeds, batch_size, on_rows)
    head = subject.adapter.manifest.head
    routes: RouteReport | None = None
    if subject.mixture is None:
        result = labelled.evaluate(subject.adapter, backbone, tokenizer, data, batch_size=batch_size, on_rows=on_rows)
    else:
        probe = MixtureProbe(subject.mixture, backbone, tokenizer, data, batch_size=batch_size, on_rows=on_rows)
        result, routes = _routes(probe, num_paths, seeds)
    return Measures(
        data=data.name,
        split=split,
        is_synthetic=False,
        metrics=result.metrics,
        rows=result.rows,
        truncated=result.truncated,
        labels=report_labels(head, data, result),
        routes=routes,
    )


def _of_texts(
    subject: Subject,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    data: GenerationData,
    split: str,
    seeds: int,
    batch_size: int,
    on_rows: Callable[[int], None],
) -> Measures:
    routes: RouteReport | None = None
    adapter, truncated = subject.adapter, 0
    if subject.mixture is None:
        metrics = beam_search.token_metrics(adapter, backbone, tokenizer, data, batch_size=batch_size, on_rows=on_rows)
    else:
        probe = TextProbe(subject.mixture, backbone, tokenizer, data, batch_size=batch_size, on_rows=on_rows)
        result, routes = _routes(probe, _num_paths(subject), seeds)
        metrics, truncated = result.metrics, result.truncated
    chosen = data.examples[:NUM_TEXTS]
    texts: tuple[Written, ...] = ()
    failure = ""
    try:
        written = beam_search.generate(
            adapter, backbone, tokenizer, [example.source for example in chosen], Decoding(num_beams=1)
        )
        texts = tuple(
            Written(example.source, example.references[0], text)
            for example, text in zip(chosen, written.texts, strict=True)
        )
    except AdamixError as error:
        # A backbone with few positions predicts references and has no room to write: no reason to have no report.
        failure = error.message
    return Measures(
        data=data.name,
        split=split,
        is_synthetic=data.is_synthetic,
        metrics=metrics,
        rows=len(data.examples),
        truncated=truncated,
        labels=None,
        routes=routes,
        texts=texts,
        failure=failure,
    )


def _routes(probe: Probe[Any], num_paths: int, seeds: int) -> tuple[Any, RouteReport]:
    """What the merged adapter does, and the other routes."""
    draws = report_draws(probe, RANDOM, seeds) if seeds else None
    merged = probe.evaluate(Routing()) if draws is None else draws.merged
    experts = tuple(probe.evaluate(Routing("fixed", expert=number)).metrics for number in range(num_paths))
    return merged, RouteReport(experts, probe.evaluate(ENSEMBLE).metrics, draws)


def _num_paths(subject: Subject) -> int:
    return 0 if subject.mixture is None else subject.mixture.manifest.num_experts
