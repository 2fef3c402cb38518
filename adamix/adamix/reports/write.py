"""`adamix report`: read, measure, and write the page and the model card.

Imports what it needs when it is asked for: `Asked.check` answers before anything is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adamix.errors import InvalidConfig, InvalidData
from adamix.routing.seeds import DEFAULT_SEEDS, MAX_SEEDS

if TYPE_CHECKING:
    from adamix.data.named import Source
    from adamix.reports.measures import Measures
    from adamix.reports.subject import Subject


@dataclass(frozen=True)
class Asked:
    """What a report is asked for.

    Attributes:
        data: None is the packaged data set that was trained on, if it was one.
        seeds: random routes, of a mixture.
        card: write a model card beside the adapter too.
    """

    source: Path
    out: Path
    data: "Source | None" = None
    split: str = "test"
    backbone: str | None = None
    seeds: int = DEFAULT_SEEDS
    batch_size: int = 32
    device: str = "auto"
    card: bool = True

    def check(self) -> None:
        """Raise InvalidConfig for what is wrong whatever is in the files."""
        if not 0 <= self.seeds <= MAX_SEEDS:
            raise InvalidConfig(f"--seeds must be in 0..{MAX_SEEDS}, not {self.seeds}", field="seeds")
        if self.batch_size < 1:
            raise InvalidConfig(f"--batch-size must be 1 or more, not {self.batch_size}", field="batch_size")
        if self.split not in ("train", "validation", "test"):
            raise InvalidConfig(f"--split must be train, validation or test, not {self.split[:40]!r}", field="split")
        if self.out.is_dir():
            raise InvalidConfig(f"--out {self.out} is a directory: name the page to write in it", field="out")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise InvalidConfig(f"--out must be named .html, not {self.out.name[:40]!r}", field="out")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        card: None where none was asked for, or somebody else's is there.
        unmeasured: why the page has nothing measured; empty where it has.
    """

    page: Path
    card: Path | None
    foreign_card: bool
    metrics: dict[str, float]
    rows: int
    unmeasured: str


def write_report(asked: Asked, *, on_progress: Callable[[int, int], None] | None = None) -> Written:
    """Write the page of a training or an adapter.

    Raises:
        InvalidConfig: a setting is wrong, or the directory holds no finished training.
        InvalidAdapter: the file is no adapter, or does not fit the backbone.
        InvalidData: the rows cannot be read, or are of another task.
    """
    asked.check()
    from adamix.files import disk
    from adamix.reports.card import card_path, is_foreign, write_card
    from adamix.reports.subject import read_subject

    subject = read_subject(asked.source)
    measures, unmeasured, device = _measure(asked, subject, on_progress or _ignore)
    from adamix.reports.page import render

    disk.write(asked.out, render(subject, measures, unmeasured, device).encode())
    beside = asked.source / "adapter.safetensors" if asked.source.is_dir() else asked.source
    foreign = asked.card and is_foreign(card_path(beside))
    card = write_card(beside, subject.adapter, measures) if asked.card and not foreign else None
    return Written(
        page=asked.out,
        card=card,
        foreign_card=foreign,
        metrics={} if measures is None else measures.metrics,
        rows=0 if measures is None else measures.rows,
        unmeasured=unmeasured,
    )


def _measure(
    asked: Asked, subject: "Subject", on_progress: Callable[[int, int], None]
) -> "tuple[Measures | None, str, str | None]":
    """What was measured, or why nothing was; and on which device."""
    head = subject.adapter.manifest.head
    source = subject.packaged_data if asked.data is None else asked.data
    if head.type == "embedding":
        return None, "how good it is: an embedding has no labels to compare with", None
    if source is None:
        named = f" ({subject.data_name} is no packaged data set)" if subject.data_name else ""
        return None, f"classes, confusion, calibration and hardest rows: no data were given{named}", None
    from adamix.backbones.backbone import device_name, load, load_tokenizer
    from adamix.data.named import GENERATION, load_rows
    from adamix.evaluation.labelled import label_type
    from adamix.reports.measures import measure

    try:
        rows = load_rows(
            source, split=asked.split, task_type=GENERATION if head.type == "causal_lm" else label_type(head)
        )
    except InvalidData as error:
        if asked.data is not None:
            raise
        # The corpus of the training is not installed here: the rest of the page is as good without it.
        return None, f"classes, confusion, calibration and hardest rows: {error.message}", None
    device = device_name(asked.device)
    name = asked.backbone or subject.adapter.manifest.backbone.name
    backbone = load(name, device=device, language_model=head.type in ("cloze", "causal_lm"))
    measures = measure(
        subject,
        backbone,
        load_tokenizer(name),
        rows,
        asked.split,
        seeds=asked.seeds,
        batch_size=asked.batch_size,
        on_progress=on_progress,
    )
    return measures, "", device


def _ignore(done: int, total: int) -> None:
    """No one asked for progress."""
