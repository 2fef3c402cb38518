"""`adamix.evaluate`: an adapter or a trained mixture measured on data, as `adamix evaluate` measures it."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.api.bars import progress_bar
from adamix.api.sources import Data, source_of
from adamix.api.words import named_as_arguments
from adamix.errors import InvalidConfig
from adamix.evaluation.metrics import finite_json
from adamix.generation.decoding import Decoding, parse_decoding
from adamix.routing.seeds import num_routes

if TYPE_CHECKING:
    from adamix.evaluation.labelled import Evaluation, Prediction
    from adamix.experiments.run import Backbones
    from adamix.files.adapter_file import AdapterFile
    from adamix.files.mixture_file import MixtureFile
    from adamix.generation.evaluation import TextEvaluation
    from adamix.routing.report import DrawsReport, EnsembleReport
    from adamix.routing.text_probe import TokenEvaluation, Writing


@dataclass(frozen=True)
class Measured:
    """What was measured on one data set.

    Attributes:
        metrics: of random routing their means over the draws, of an ensemble those of the ensemble.
        rows: examples, or sources of texts.
        truncated: of these, those that were cut to the adapter's `max_length`.
        predictions: of each row a label, labels, a number or a text; empty where none was made. Of several draws those
            of the first.
        logits: of each row what the head put out; empty for texts.
        document: what `adamix evaluate --json` prints.
    """

    metrics: dict[str, float]
    rows: int
    truncated: int
    predictions: "list[Prediction]" = field(repr=False)
    logits: list[list[float]] = field(repr=False)
    document: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class HowMeasured:
    """The arguments that all functions which measure have in common, as they were given."""

    split: str
    routing: str = "merged"
    seeds: int | None = None
    decoding: str | Decoding | None = None
    scoring: str | None = None
    subset: str | None = None
    batch_size: int = 32
    device: str = "auto"

    def check(self, head_type: str) -> None:
        """Raise InvalidConfig for what does not go with a head, or with anything."""
        if self.batch_size < 1:
            raise InvalidConfig(f"batch_size must be 1 or more, not {self.batch_size}", field="batch_size")
        for name in ("decoding", "scoring", "subset"):
            if head_type != "causal_lm" and getattr(self, name) is not None:
                raise InvalidConfig(
                    f"{name} is for generated texts, and this adapter's head is {head_type}", field=name
                )

    def writing(self) -> "Writing":
        from adamix.generation.metrics import STYLES
        from adamix.routing.text_probe import Writing

        style = self.scoring or STYLES[0]
        if style not in STYLES:
            raise InvalidConfig(f"scoring must be one of {', '.join(STYLES)}, not {style!r:.40}", field="scoring")
        given = self.decoding
        return Writing(given if isinstance(given, Decoding) else parse_decoding(given or ""), style)


def evaluate(
    source: str | os.PathLike[str],
    data: Data,
    *,
    backbone: str | os.PathLike[str] | None = None,
    split: str = "test",
    routing: str = "merged",
    seeds: int | None = None,
    decoding: str | Decoding | None = None,
    scoring: str | None = None,
    subset: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    progress: bool = True,
) -> Measured:
    """Measure an adapter on labelled text or reference texts, or a trained mixture by other routes through its experts.

    Args:
        source: an adapter file, or the directory of a training.
        data: as for `fit`.
        backbone: as for `fit`; None is the one that the adapter names.
        split: train, validation or test.
        routing: merged, random[:sentence|token], fixed:I or ensemble[:probabilities][:all].
        seeds: random routes, of random and ensemble; 10 if None.
        decoding: of generated texts, a `Decoding` or `NAME=VALUE,…`.
        scoring: of generated texts: e2e, or webnlg.
        subset: categories of WebNLG: all, seen or unseen.
        batch_size: rows per forward pass.
        device: auto, cpu or cuda.

    Raises:
        InvalidConfig, InvalidData, InvalidAdapter, FailedPrecondition: as the command.
    """
    how = HowMeasured(split, routing, seeds, decoding, scoring, subset, batch_size, device)
    with named_as_arguments():
        from adamix.experiments.run import Backbones

        name = None if backbone is None else os.fspath(backbone)
        return measure_source(Path(source), data, name, how, Backbones(), progress=progress)


def measure_source(
    source: Path, data: Data, backbone: str | None, how: HowMeasured, backbones: "Backbones", *, progress: bool
) -> Measured:
    """As `evaluate`, on backbones that may be loaded already."""
    from adamix.routing.choice import parse_routing
    from adamix.routing.source import read_source

    num_routes(parse_routing(how.routing), how.seeds)
    adapter, mixture = read_source(source, parse_routing(how.routing))
    return measure(adapter, mixture, data, backbone, how, backbones, progress=progress)


def measure(
    adapter: "AdapterFile",
    mixture: "MixtureFile | None",
    data: Data,
    backbone: str | None,
    how: HowMeasured,
    backbones: "Backbones",
    *,
    progress: bool,
) -> Measured:
    """As `measure_source`, of a file that was read already."""
    from adamix.experiments.measuring import Asked, measure_labels, measure_texts
    from adamix.generation.evaluation import TextEvaluation
    from adamix.routing.choice import parse_routing

    head_type = adapter.manifest.head.type
    how.check(head_type)
    routing = parse_routing(how.routing)
    generates = head_type == "causal_lm"
    # By routes through a mixture texts are generated on demand alone: by every draw they take many times as long.
    is_asked = mixture is None or how.decoding is not None or how.scoring is not None
    asked = Asked(
        data=source_of(data),
        split=how.split,
        backbone=backbone,
        routing=routing,
        seeds=num_routes(routing, how.seeds),
        batch_size=how.batch_size,
        device=how.device,
        subset=how.subset,
        writing=how.writing() if generates and is_asked else None,
    )
    details: dict[str, Any] = {} if mixture is None else {"routing": str(routing)}
    with progress_bar("evaluating", shown=progress) as advance:
        if not generates:
            labels, report, _ = measure_labels(adapter, mixture, asked, backbones, advance)
            return _measured(labels, report, details)
        texts, report, sources = measure_texts(adapter, mixture, asked, backbones, advance)
    details["synthetic"] = sources.is_synthetic
    if isinstance(texts, TextEvaluation) and asked.writing is not None:
        details |= {
            "scoring": asked.writing.style,
            "decoding": asdict(asked.writing.decoding),
            "warnings": texts.warnings,
        }
        if report is None:
            details["unfinished"] = texts.unfinished
    return _measured(texts, report, details)


def _measured(
    result: "Evaluation | TokenEvaluation | TextEvaluation",
    report: "DrawsReport[Any] | EnsembleReport[Any] | None",
    details: dict[str, Any],
) -> Measured:
    if report is not None:
        document = report.document() | details
    else:
        document = {"metrics": result.metrics, "rows": result.rows, "truncated": result.truncated, **details}
    return Measured(
        metrics=document["metrics"],
        rows=result.rows,
        truncated=result.truncated,
        predictions=list(getattr(result, "predictions", ())),
        logits=list(getattr(result, "logits", ())),
        document=finite_json(document),
    )
