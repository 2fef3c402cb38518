"""The model card beside an adapter: `README.md`, with the front matter that model hubs read.

Says what the file says of itself and what was measured, and nothing that nobody knows: no licence, no intended use. A
`README.md` that is no such card is never written over.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from adamix.backbones.packaged import PACKAGES
from adamix.data.hub import NAME
from adamix.errors import InvalidConfig
from adamix.files import disk
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import HeadType, Manifest
from adamix.reports.shown import shown

if TYPE_CHECKING:
    from adamix.reports.measures import Measures

CARD_FILE = "README.md"
LIBRARY = "adamix"

_PIPELINES: dict[HeadType, str] = {
    "classification": "text-classification",
    "multilabel": "text-classification",
    "regression": "text-classification",
    "cloze": "text-classification",
    "embedding": "feature-extraction",
    "causal_lm": "text-generation",
}
_VALIDATION = "validation_"
_MAX_LABELS = 50
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]()#+-.!|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def card_path(file: Path) -> Path:
    """Where the card of an adapter file lies."""
    return file.parent / CARD_FILE


def is_foreign(path: Path) -> bool:
    """Whether there is a file that is no card of ours."""
    if not path.exists():
        return False
    try:
        text = path.read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
        return True
    return not (isinstance(front, dict) and front.get("library_name") == LIBRARY)


def check_card(file: Path) -> None:
    """Raise InvalidConfig, before any work, where a card would take the place of somebody else's file."""
    path = card_path(file)
    if is_foreign(path):
        raise InvalidConfig(
            f"--card: {path} is there and no model card of {LIBRARY}: write the adapter into a directory of its own",
            field="card",
        )


def write_card(file: Path, adapter: AdapterFile, measures: "Measures | None" = None) -> Path:
    """Write the card beside an adapter file, and say where it is. Raises InvalidConfig as `check_card`."""
    check_card(file)
    disk.write(card_path(file), render_card(file.name, adapter, measures).encode())
    return card_path(file)


def render_card(file: str, adapter: AdapterFile, measures: "Measures | None" = None) -> str:
    """The card of an adapter, by the name of its file."""
    manifest = adapter.manifest
    head, record = manifest.head, manifest.training
    labels = head.labels if head.type in ("classification", "multilabel", "cloze") else ()
    count, head_count = adapter.num_parameters()
    front = yaml.safe_dump(_front(file, manifest, measures), sort_keys=False, allow_unicode=True, width=1000)
    # Markdown, whose marks `mark` escapes: what stands for HTML there is escaped by it too.
    environment = jinja2.Environment(  # noqa: S701
        loader=jinja2.PackageLoader("adamix.reports"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["mark"] = mark
    return environment.get_template("card.md.jinja").render(
        front=front,
        title=mark(_data_name(manifest) or "Adapter"),
        kind=manifest.kind,
        backbone=mark(manifest.backbone.label),
        bytes=adapter.num_bytes,
        file="".join(char for char in file if char.isprintable() and char not in '"\\`') or "adapter.safetensors",
        generates=head.type == "causal_lm",
        measures=measures,
        told={name.removeprefix(_VALIDATION): value for name, value in record.metrics.items()},
        labels=labels[:_MAX_LABELS],
        more_labels=max(0, len(labels) - _MAX_LABELS),
        training={
            "method": f"{record.method}, {record.num_experts} experts, consistency {record.consistency:g}",
            "merged by": record.merge,
            "data": record.data or "not named",
            "seed": record.seed,
            "parameters": f"{count:,} in the adapter, {head_count:,} in the head",
            "longest text": f"{manifest.max_length} tokens",
            "backbone": f"{manifest.backbone.model_type}, sha256 {manifest.backbone.fingerprint}",
            "file": f"sha256 {adapter.digest}",
        },
    )


def mark(value: object) -> str:
    """A text of somebody else's, in which nothing is a mark of Markdown or HTML, on one line."""
    return " ".join(shown(value, 300).split()).translate(_MARKS)


def _front(file: str, manifest: Manifest, measures: "Measures | None") -> dict[str, Any]:
    backbone = manifest.backbone.name
    front: dict[str, Any] = {"library_name": LIBRARY, "tags": ["adamix", "adapter", manifest.kind]}
    front["pipeline_tag"] = _PIPELINES[manifest.head.type]
    # A hub id has an owner; a directory or a packaged name means nothing elsewhere.
    if (
        manifest.backbone.label == backbone
        and "/" in backbone
        and backbone not in PACKAGES
        and NAME.fullmatch(backbone)
    ):
        front["base_model"] = backbone
    data = _data_name(manifest)
    if "/" in data and NAME.fullmatch(data):
        front["datasets"] = [data.partition(":")[0]]
    if measures is not None:
        task = {"type": _PIPELINES[manifest.head.type]}
        dataset = {"name": shown(measures.data, 200), "type": shown(measures.data, 200), "split": measures.split}
        metrics = [{"type": name, "value": round(value, 6)} for name, value in measures.metrics.items()]
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        front["model-index"] = [{"name": shown(Path(file).stem, 200), "results": results}]
    return front


def _data_name(manifest: Manifest) -> str:
    data = manifest.training.data
    return data.rpartition(" (")[0] or data
