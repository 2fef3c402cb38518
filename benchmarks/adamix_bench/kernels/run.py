"""One run: cells in order of importance, forms in passes, everything kept as soon as it is known."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adamix_bench import machine
from adamix_bench.kernels import devices, report
from adamix_bench.kernels.cells import COMPILED, Cell
from adamix_bench.kernels.clocks import Timing
from adamix_bench.kernels.devices import COMPILED_ONLY, Device
from adamix_bench.kernels.report import Report
from adamix_bench.kernels.settings import Settings
from adamix_bench.kernels.store import Store, slug, sources_digest
from adamix_bench.kernels.verdicts import Measured
from adamix_bench.kernels.whole_encoder import BERT_BASE, RETENTION_TARGET, TINY, retention
from adamix_bench.measure import Goal

_COLUMNS = 200

Say = Callable[[str], None]


def run(settings: Settings, out: Path, command: Sequence[str], *, quiet: bool = False) -> dict[str, Any]:
    """Measure, save `kernels.json` and `kernels.png` under `out/<device>`, and return the document.

    What an earlier run into the same directory measured with the same versions is not measured again.

    Args:
        command: what was asked, for the document.
        quiet: print no tables.
    """
    device = devices.found()
    console = Console(stderr=True, highlight=False)
    directory = out / slug(device.name)
    console.print(f"measuring on {device.name}, into {directory}")
    found = Report(
        directory=directory,
        device=device.name,
        device_type=device.type,
        settings=asdict(settings),
        machine=machine.describe(torch.get_num_threads()),
        command=command,
    )
    deadline_s = None if settings.budget_s is None else time.monotonic() + settings.budget_s
    try:
        with _progress(console) as (say, advance):
            _measure(settings, device, found, Store(directory / "kernels.jsonl"), deadline_s, say, advance)
    except KeyboardInterrupt:
        found.status = "interrupted"
    found.save()
    if not quiet:
        # Where there is no terminal, a table of all forms takes this much to be readable.
        Console(width=None if sys.stdout.isatty() else _COLUMNS).print(found.tables())
    for path in report.plots(found):
        console.print(f"wrote {path}")
    return found.to_json()


def _measure(
    settings: Settings,
    device: Device,
    found: Report,
    store: Store,
    deadline_s: float | None,
    say: Say,
    advance: Callable[[int, int], None],
) -> None:
    say("what the device copies in a second")
    found.facts = device.facts()
    steps = _steps(settings, device, found, store)
    for done, (what, step) in enumerate(steps):
        if deadline_s is not None and time.monotonic() > deadline_s:
            found.status = f"out of time: {len(steps) - done} of {len(steps)} steps are missing"
            return
        say(what)
        advance(done, len(steps))
        step()
        if done % 16 == 0:
            found.save()
    found.status = "complete"


def _steps(settings: Settings, device: Device, found: Report, store: Store) -> list[tuple[str, Callable[[], None]]]:
    """What is measured, in order: our own form in every cell before what it is compared with; the whole encoder as soon
    as the usual sizes, which come first, are known."""
    dtypes, cells = settings.dtypes or (device.default_dtype,), settings.chosen()
    steps: list[tuple[str, Callable[[], None]]] = [
        (f"{cell} {dtype}: {', '.join(forms)}", partial(_add, found, device, store, cell, dtype, forms))
        for forms in device.passes
        for cell in cells
        for dtype in dtypes
        if forms != COMPILED_ONLY or cell in COMPILED
    ]
    # On a CPU, `adamix bench serving` measures whole encoders.
    if settings.quick or (device.type == "cuda" and settings.has_all_cells):
        usual = sum(cell.is_usual for cell in cells) * len(dtypes)
        steps.insert(usual, ("a whole encoder", partial(_add_encoder, found, quick=settings.quick)))
    return steps


def _add_encoder(found: Report, *, quick: bool) -> None:
    if find_spec("transformers") is None:
        found.encoder = [Goal("encoder", "a whole packed encoder", None, RETENTION_TARGET, note="no transformers here")]
        return
    sizes, dtype = (TINY, torch.float32) if quick else (BERT_BASE, torch.bfloat16)
    try:
        found.encoder = retention(sizes, torch.device(found.device_type), dtype)
    except RuntimeError as error:
        found.failures["whole encoder"] = str(error).splitlines()[0]


def _add(found: Report, device: Device, store: Store, cell: Cell, dtype: str, forms: Sequence[str]) -> None:
    """Measure some forms of a cell, or take from the store what is there."""
    chosen = device.chosen(cell, dtype)
    keys = {form: _key(device, cell, dtype, form, chosen) for form in forms}
    times = {form: Timing(**kept) for form in forms if (kept := store.get(keys[form])) is not None}
    missing = [form for form in forms if form not in times]
    # On a CPU the forms of a cell took turns: they are compared with one another, or not at all.
    wanted = list(forms) if missing and device.type == "cpu" else missing
    if wanted:
        times |= device.times(cell, dtype, wanted)
        for form in wanted:
            if times[form].error and form == chosen["form"]:
                # Not kept: the next run tries again.
                found.failures[f"{cell} {dtype}"] = times[form].error
            else:
                store.keep(keys[form], asdict(times[form]))
    found.cells.setdefault((cell, dtype), Measured(cell, dtype, chosen)).times.update(times)


def _key(device: Device, cell: Cell, dtype: str, form: str, chosen: dict[str, Any]) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "triton": metadata.version("triton"), "sources": sources_digest()}
    plan = {"plan": chosen["plan"]} if form == "fused" else {}
    return {"device": device.name, "dtype": dtype, "form": form, **asdict(cell), **versions, **plan}


@contextmanager
def _progress(console: Console) -> Iterator[tuple[Say, Callable[[int, int], None]]]:
    """Two functions: one says what is being done, one how much of it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield (
            lambda what: bar.update(task, description=what),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
