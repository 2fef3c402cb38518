"""Write what a store holds: `quality.json`, `quality.md` and three pictures, and print the tables."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adamix.errors import InvalidData
from adamix.files import disk
from adamix_bench import reports
from adamix_bench.machine import describe
from adamix_bench.quality import plots, report, tuning
from adamix_bench.quality.settings import QualitySettings
from adamix_bench.quality.store import RunStore
from adamix_bench.quality.trainings import TRAININGS


def write(
    settings: QualitySettings, store: RunStore, out: Path, command: Sequence[str], *, quiet: bool
) -> dict[str, Any]:
    """Report everything in the store, whatever part of it this call has run.

    Args:
        command: the words after `adamix`.
        quiet: print no tables.

    Returns:
        what `quality.json` holds.
    """
    records = store.records("run")
    document = report.document(
        records,
        command=command,
        machine=describe(torch.get_num_threads()),
        settings=settings.protocol(),
        tuning={"trials": store.records("trial"), "chosen": _chosen(settings, store)},
    )
    tables, lines = report.tables(records), report.claim_lines(document["claim"])
    text = "\n".join(["\n".join(f"- {line}" for line in lines), "", *(table.markdown() for table in tables)])
    reports.save(document, out / "quality.json")
    disk.write(out / "quality.md", text.encode())
    plots.violins(records, out / "quality-routes.png")
    plots.paired_differences(records, out / "quality-differences.png")
    plots.ablations(records, out / "quality-ablations.png")
    if not quiet:
        console = Console()
        for table in tables:
            console.print(table.rich())
        for line in lines:
            console.print(line, soft_wrap=True)
    return document


def _chosen(settings: QualitySettings, store: RunStore) -> dict[str, Any]:
    """The choice of each training whose trials are complete."""
    trials, found = store.records("trial"), {}
    for training in TRAININGS:
        with suppress(InvalidData):
            found[training] = asdict(tuning.chosen(settings, training, trials))
    return found
