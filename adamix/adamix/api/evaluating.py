"""`adamix.evaluate`: an adapter or a trained mixture measured on data, as `adamix evaluate` measures it."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.api.bars import Advance, progress_bar
from adamix.api.sources import Data, source_of
from adamix.api.words import named_as_arguments
from adamix.data.memory import MemoryData
from adamix.errors import InvalidConfig, InvalidData
from adamix.evaluation.metrics import finite_json
from adamix.generation.decoding import Decoding, parse_decoding
from adamix.routing.seeds import num_routes

if TYPE_CHECKING:
    from adamix.data import GenerationData
    from adamix.evaluation.labelled import Evaluation, Prediction
    from adamix.experiments.run import Backbones
    from adamix.files.adapter_file import AdapterFile
    from adamix.files.mixture_file import MixtureFile
    from adamix.generation.evaluation import TextEvaluation
    from adamix.routing.report import DrawsReport, EnsembleReport
    from adamix.routing.routing import Routing
    from adamix.routing.text_probe import TokenEvaluation


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
    with named_as_arguments():
        from adamix.experiments.run import Backbones
        from adamix.routing.routing import parse_routing
        from adamix.routing.source import read_source

        chosen = parse_routing(routing)
        adapter, mixture = read_source(Path(source), chosen)
        asked = Asked(
            data=data,
            backbone=os.fspath(backbone or adapter.manifest.backbone.name),
            split=split,
            routing=chosen,
            seeds=num_routes(chosen, seeds),
            writing={"decoding": decoding, "scoring": scoring, "subset": subset},
            batch_size=batch_size,
            device=device,
        )
        return measure(adapter, mixture, asked, Backbones(), progress=progress)


@dataclass(frozen=True)
class Asked:
    """What `evaluate` was asked for, as it was given."""

    data: Data
    backbone: str
    split: str
    routing: "Routing"
    seeds: int
    writing: dict[str, Any]
    batch_size: int
    device: str

    def style(self) -> str:
        from adamix.generation.metrics import STYLES

        style = self.writing["scoring"] or STYLES[0]
        if style not in STYLES:
            raise InvalidConfig(f"scoring must be one of {', '.join(STYLES)}, not {style!r:.40}", field="scoring")
        return str(style)

    def decoding(self) -> Decoding:
        given = self.writing["decoding"]
        return given if isinstance(given, Decoding) else parse_decoding(given or "")

    def sources(self) -> "GenerationData":
        from adamix.data import load_generation

        source, subset = source_of(self.data), self.writing["subset"] or "all"
        if isinstance(source, MemoryData):
            return source.generation(self.split, subset)
        return load_generation(source, split=self.split, subset=subset)


def measure(
    adapter: "AdapterFile", mixture: "MixtureFile | None", asked: Asked, backbones: "Backbones", *, progress: bool
) -> Measured:
    """As `evaluate`, of a file that was read, on backbones that may be loaded already."""
    from adamix.backbones.backbone import device_name, load_tokenizer
    from adamix.data import TASK_TYPES, TaskData
    from adamix.data.named import load_rows
    from adamix.evaluation import labelled

    head = adapter.manifest.head
    device = device_name(asked.device)
    if head.type == "causal_lm":
        sources = asked.sources()
        loaded = backbones.load(asked.backbone, device, language_model=True)
        with progress_bar("evaluating", shown=progress) as advance:
            return _of_texts(adapter, mixture, asked, sources, loaded, load_tokenizer(asked.backbone), advance)
    for name, value in asked.writing.items():
        if value is not None:
            raise InvalidConfig(f"{name} is for generated texts, and this adapter's head is {head.type}", field=name)
    if head.type not in (*TASK_TYPES, "cloze"):
        raise InvalidData(
            f"this adapter's head is {head.type}, which has no labels to compare with; "
            f"evaluated are {', '.join(TASK_TYPES)}"
        )
    rows = load_rows(source_of(asked.data), split=asked.split, task_type=labelled.label_type(head))
    if not isinstance(rows, TaskData):
        raise InvalidData(f"{rows.name} has no labels")
    loaded = backbones.load(asked.backbone, device, language_model=head.type == "cloze")
    tokenizer = load_tokenizer(asked.backbone)
    with progress_bar("evaluating", shown=progress) as advance:
        if mixture is None:
            counted = _counted(advance, len(rows.examples))
            result = labelled.evaluate(adapter, loaded, tokenizer, rows, batch_size=asked.batch_size, on_rows=counted)
            return _measured(result, None, {})
        from adamix.routing.probe import MixtureProbe
        from adamix.routing.report import measure as by_routes
        from adamix.routing.report import num_passes

        probe = MixtureProbe(mixture, loaded, tokenizer, rows, batch_size=asked.batch_size)
        probe.on_rows = _counted(advance, len(rows.examples) * num_passes(probe, asked.routing, asked.seeds))
        found, report = by_routes(probe, asked.routing, asked.seeds)
        return _measured(found, report, {"routing": str(asked.routing)})


def _of_texts(
    adapter: "AdapterFile",
    mixture: "MixtureFile | None",
    asked: Asked,
    sources: "GenerationData",
    backbone: Any,
    tokenizer: Any,
    advance: Advance,
) -> Measured:
    from adamix.generation.evaluation import TextEvaluation, evaluate_texts
    from adamix.routing.report import measure_texts, num_passes
    from adamix.routing.text_probe import TextProbe, Writing

    details: dict[str, Any] = {"synthetic": sources.is_synthetic}
    decoding, style = asked.decoding(), asked.style()
    if mixture is None:
        result = evaluate_texts(
            adapter,
            backbone,
            tokenizer,
            sources,
            decoding,
            style=style,
            batch_size=asked.batch_size,
            on_rows=_counted(advance, len(sources.examples)),
        )
        details |= {"scoring": style, "decoding": asdict(decoding), "warnings": result.warnings}
        return _measured(result, None, details)
    is_asked = asked.writing["decoding"] is not None or asked.writing["scoring"] is not None
    writing = Writing(decoding, style) if is_asked else None
    probe = TextProbe(mixture, backbone, tokenizer, sources, batch_size=asked.batch_size, writing=writing)
    a_pass = len(sources.examples) if writing else sum(len(example.references) for example in sources.examples)
    probe.on_rows = _counted(advance, a_pass * num_passes(probe, asked.routing, asked.seeds))
    found, report = measure_texts(probe, asked.routing, asked.seeds)
    if isinstance(found, TextEvaluation):
        details |= {"scoring": style, "decoding": asdict(decoding), "warnings": found.warnings}
    return _measured(found, report, details | {"routing": str(asked.routing)})


def _counted(advance: Advance, total: int) -> Any:
    """Counts rows that passed, for a bar."""
    done = 0

    def on_rows(count: int) -> None:
        nonlocal done
        done += count
        advance(done, total)

    return on_rows


def _measured(
    result: "Evaluation | TokenEvaluation | TextEvaluation",
    report: "DrawsReport[Any] | EnsembleReport[Any] | None",
    details: dict[str, Any],
) -> Measured:
    if report is not None:
        document = report.document() | details
    else:
        document = {"metrics": result.metrics, "rows": result.rows, "truncated": result.truncated, **details}
        if (unfinished := getattr(result, "unfinished", None)) is not None:
            document["unfinished"] = unfinished
    return Measured(
        metrics=document["metrics"],
        rows=result.rows,
        truncated=result.truncated,
        predictions=list(getattr(result, "predictions", ())),
        logits=list(getattr(result, "logits", ())),
        document=finite_json(document),
    )
