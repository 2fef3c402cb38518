"""`--tune`: times plans on the CUDA device and writes the table of its architecture."""

import json
import time
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from adamix.errors import FailedPrecondition
from adamix_bench.kernels.devices import label
from adamix_bench.kernels.settings import Settings
from adamix_bench.kernels.tuner import OP, Change, TimePlan, tune, write_table
from adamix_kernels.plans import table


def run_tuning(
    settings: Settings,
    out: Path,
    *,
    architecture: str | None = None,
    time_plan: TimePlan | None = None,
    tables: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Tune every rule of `OP`, write the table to `tables` and to `out`, and say what changed.

    Args:
        settings: `dtypes` says whose rules; `budget_s` when to leave the rest as it is.
        architecture, time_plan: None takes those of the CUDA device.
        tables: the directory of the tables; None takes that of the package.

    Raises:
        FailedPrecondition: there is no CUDA device.
    """
    if time_plan is None or architecture is None:
        if not torch.cuda.is_available():
            raise FailedPrecondition("--tune times kernels and needs a CUDA device")
        from adamix_bench.kernels.plan_clock import PlanClock
        from adamix_kernels.gpu.ops import architecture as architecture_of

        device = torch.device("cuda", torch.cuda.current_device())
        architecture, time_plan = architecture_of(device), PlanClock(device)
    console = Console(stderr=True, highlight=False)
    ends_s = time.monotonic() + (settings.budget_s or float("inf"))
    rules = table(architecture)
    tuned, changes = tune(
        rules[OP],
        architecture,
        time_plan,
        dtypes=settings.dtypes or ("bf16", "fp32"),
        is_over=lambda: time.monotonic() > ends_s,
        on_rule=lambda name: console.print(f"{architecture}: {name}"),
    )
    if not quiet:
        Console().print(_shown(changes))
    document = {"architecture": architecture, "changes": [asdict(change) for change in changes]}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"tuned-{architecture}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    # The package last: it may lie where this user cannot write.
    name = f"{architecture}.json"
    for directory in (out, tables or Path(str(files("adamix_kernels"))) / "plans"):
        write_table(directory / name, {**rules, OP: tuned})
        console.print(f"wrote {directory / name}")
    return document


def _shown(changes: list[Change]) -> Table:
    shown = Table("rule", "before", "us", "after", "us", "tried")
    for change in changes:
        after = "the same" if change.after == change.before else label(change.after)
        times = (f"{change.before_us:.2f}", f"{change.after_us:.2f}")
        shown.add_row(change.rule, label(change.before), times[0], after, times[1], str(change.tried))
    return shown
