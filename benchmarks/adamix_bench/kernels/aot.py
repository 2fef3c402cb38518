"""What the kernels take on devices that are not here: `adamix bench kernels --aot`.

Compiling is left to a process of its own (`python -m adamix_kernels.aot`), since Triton's compiler cannot share one
with its interpreter, and either may be at work in this one.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adamix.errors import AdamixError

# Reported with a fault found, and with none.
_STATUSES = (0, 1)


def run(out: Path, *, full: bool, quiet: bool) -> dict[str, Any]:
    """Compile one plan for each kernel and target, or with `full` every plan; the document is also saved in `out`.

    Returns:
        {"sources": digest of the kernels and plans, "triton": version, "full": bool, "aot": [row, ...]}, with a row for
        each kernel, target and plan; one that has "problems" is faulty.

    Raises:
        AdamixError: the compiler could not be run.
    """
    command = [sys.executable, "-m", "adamix_kernels.aot", "--json", *(["--full"] if full else [])]
    status, output = output_of(command)
    if status not in _STATUSES or not output:
        raise AdamixError(f"the kernels could not be compiled: the compiler ended with status {status}")
    document: dict[str, Any] = json.loads(output)
    save(document, out / "aot.json")
    if not quiet:
        Console().print(table(document))
    return document


def output_of(command: Sequence[str]) -> tuple[int, str]:
    """Status and stdout of a command; on Ctrl-C the processes that it started end with it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            # The compiler's workers ignore interrupts and would outlive it.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


def save(document: dict[str, Any], path: Path) -> None:
    """A row a line, so that a difference between two versions reads as one."""
    head = {name: value for name, value in document.items() if name != "aot"}
    rows = ",\n".join(f"  {json.dumps(row)}" for row in document["aot"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{json.dumps(head)[:-1]}, "aot": [\n{rows}\n]}}\n', encoding="utf-8")


def table(document: dict[str, Any]) -> Table:
    """For people: the rows, the faulty ones with what is wrong."""
    made = Table("kernel", "target", "plan", "registers", "spilled B", "shared B", "mma", "problems")
    for row in document["aot"]:
        numbers = [str(row.get(name, "")) for name in ("registers", "spill_bytes", "shared_bytes", "mma")]
        made.add_row(row["kernel"], row["target"], row["plan"], *numbers, "; ".join(row.get("problems", ())))
    return made
