"""The page: everything that was found out, put into one HTML file that needs nothing else.

No script, no font and nothing from elsewhere; all texts and labels are escaped. Equal findings give equal bytes.
Measures nothing and writes no file.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

import jinja2
from markupsafe import Markup

from adamix.reports import charts
from adamix.reports.labels import LabelReport
from adamix.reports.measures import Measures, RouteReport
from adamix.reports.shown import shown
from adamix.reports.subject import Subject

_VALIDATION = "validation_"
_LIBRARIES = ("adamix", "torch", "transformers", "tokenizers", "numpy")
_TITLES = {
    "curves": "Training",
    "classes": "By class",
    "confusion": "Confusion",
    "points": "Targets",
    "calibration": "Calibration",
    "hardest": "Hardest rows",
    "texts": "Texts",
    "routes": "Routes",
}

Facts = Mapping[str, object]


@dataclass(frozen=True)
class _Page:
    """What the template reads."""

    title: str
    kind: str
    backbone: str
    digest: str
    headline: Mapping[str, float]
    sections: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    metrics: tuple[tuple[str, float | None, float | None], ...]
    measures: Measures | None
    labels: LabelReport | None
    routes: RouteReport | None
    curves: Markup | None
    reliability: Markup | None
    points: Markup | None
    draws: Markup | None
    facts: tuple[tuple[str, str, Facts, str], ...]


def render(subject: Subject, measures: Measures | None, unmeasured: str, device: str | None) -> str:
    """The whole page.

    Args:
        unmeasured: why nothing was measured; empty where something was.
        device: on which it was; None likewise.
    """
    labels = None if measures is None else measures.labels
    routes = None if measures is None else measures.routes
    told = {name.removeprefix(_VALIDATION): v for name, v in subject.adapter.manifest.training.metrics.items()}
    measured = {} if measures is None else measures.metrics
    facts = _facts(subject, device)
    page = _Page(
        title=f"{subject.data_name or 'adapter'}: {subject.name}",
        kind=subject.adapter.manifest.kind
        if subject.mixture is None
        else f"mixture of {subject.adapter.manifest.kind}s",
        backbone=subject.adapter.manifest.backbone.label,
        digest=subject.adapter.digest,
        headline=measured or told,
        sections=_sections(subject, measures, facts),
        unknown=tuple(_unknown(subject, measures, unmeasured)),
        metrics=tuple((name, measured.get(name), told.get(name)) for name in dict.fromkeys([*measured, *told])),
        measures=measures,
        labels=labels,
        routes=routes,
        curves=charts.curves(subject.readings) if subject.readings else None,
        reliability=charts.reliability(labels.calibration) if labels and labels.calibration else None,
        points=charts.points(labels.points) if labels and labels.points else None,
        draws=charts.draws(routes.draws) if routes and routes.draws else None,
        facts=facts,
    )
    return _environment().get_template("page.html.jinja").render(page=page)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adamix.reports"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["shown"] = shown
    return environment


def _sections(
    subject: Subject, measures: Measures | None, facts: tuple[tuple[str, str, Facts, str], ...]
) -> tuple[tuple[str, str], ...]:
    """The links at the top, in the order of the page."""
    labels = None if measures is None else measures.labels
    present = {
        "curves": bool(subject.readings),
        "classes": bool(labels and labels.classes),
        "confusion": bool(labels and (labels.confusion or labels.confusions)),
        "points": bool(labels and labels.points),
        "calibration": bool(labels and labels.calibration),
        "hardest": bool(labels and labels.hardest),
        "texts": bool(measures and measures.texts),
        "routes": bool(measures and measures.routes),
    }
    middle = [(name, _TITLES[name]) for name, is_there in present.items() if is_there]
    return (("metrics", "Metrics"), *middle, *((name, title) for name, title, _, _ in facts))


def _unknown(subject: Subject, measures: Measures | None, unmeasured: str) -> list[str]:
    notes = [unmeasured] if unmeasured else []
    if subject.mixture is None:
        notes.append("curves, settings and routes: a merged file has none of them; report on the training's directory")
    elif not subject.readings:
        notes.append("curves: the run keeps no readings of its loss")
    if not subject.adapter.manifest.training.metrics:
        notes.append("what the training measured on its validation split: nothing is recorded")
    if measures is not None and measures.failure:
        notes.append(f"texts: {measures.failure}")
    if not subject.data_name:
        notes.append("the training data: the file does not name them")
    return notes


def _facts(subject: Subject, device: str | None) -> tuple[tuple[str, str, Facts, str], ...]:
    manifest, adapter = subject.adapter.manifest, subject.adapter
    record, head = manifest.training, manifest.head
    count, head_count = adapter.num_parameters()
    sites = sorted({site for _, site in adapter.sites()})
    settings: dict[str, object] = {name: subject.settings[name] for name in sorted(subject.settings)} or {
        "method": record.method,
        "experts": record.num_experts,
        "share": record.share,
        "consistency": record.consistency,
        "seed": record.seed,
    }
    sizes: dict[str, object] = {
        "parameters of the adapter": f"{count:,}",
        "parameters of its head": f"{head_count:,}",
        "bytes of the file": f"{adapter.num_bytes:,}",
        "places": f"{', '.join(sites) or 'none'} in {len({layer for layer, _ in adapter.sites()})} layers",
        "longest text": f"{manifest.max_length:,} tokens",
        "head": f"{head.type}, {head.num_labels} outputs" if head.type != "causal_lm" else head.type,
    }
    if subject.mixture is not None:
        values = sum(tensor.array.size for tensor in subject.mixture.tensors.values())
        sizes["parameters of all experts, with the head"] = f"{values:,}"
    provenance: dict[str, object] = {
        "sha256 of the adapter": adapter.digest,
        "backbone": f"{manifest.backbone.label} ({manifest.backbone.model_type})",
        "fingerprint of the backbone": manifest.backbone.fingerprint,
        "fingerprint of its tokenizer": manifest.backbone.tokenizer_fingerprint,
        "training data": record.data or "not named",
        "merged by": record.merge,
    }
    if "data.sha256" in subject.settings:
        provenance["sha256 of the training rows"] = subject.settings["data.sha256"]
    environment: dict[str, object] = {name: _version(name) for name in _LIBRARIES}
    environment |= {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    environment["processors"] = os.cpu_count() or "not known"
    if device is not None:
        environment["device"] = device
    merged = "" if subject.mixture is None else "Sizes and digest are those of the mixture merged by its mean."
    return (
        ("settings", "Settings", settings, ""),
        ("sizes", "Sizes", sizes, merged),
        ("provenance", "Provenance", provenance, ""),
        ("environment", "Environment", environment, "Of this report; a run does not record where it was made."),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not known"
