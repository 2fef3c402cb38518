"""`adamix glue`."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from adamix.cli.terminal import JsonFlag, exit_codes, print_json
from adamix.errors import InvalidConfig, InvalidData

_MAX_RESULT_BYTES = 64 << 20


def glue(
    results: Annotated[
        list[str],
        typer.Argument(metavar="TASK=FILE|TASK.json", help="What `evaluate --json` printed for each task."),
    ],
    json_: JsonFlag = False,
) -> None:
    """Tabulate the results of GLUE tasks, with the averages of the paper's Tables 1 and 2."""
    with exit_codes():
        from adamix.experiments.glue import report

        found: dict[str, dict[str, float]] = {}
        for argument in results:
            task, separator, name = argument.partition("=")
            path = Path(name if separator else argument)
            task = task if separator else path.name.removesuffix(".json")
            if task in found:
                raise InvalidConfig(f"two results are given for {task[:40]!r}")
            found[task] = _metrics(path)
        table = report(found)
        if json_:
            averages = {"average": table.average, "average_f1": table.average_f1}
            print_json({"scores": table.scores, **averages, "missing": list(table.missing)})
            return
        for task, scores in table.scores.items():
            print(f"{task:8}  " + "  ".join(f"{name} {value:.1f}" for name, value in scores.items()))
        if table.average is None or table.average_f1 is None:
            print(f"no average: {', '.join(table.missing)} missing")
        else:
            print(f"average  {table.average:.1f} (accuracy of QQP and MRPC), {table.average_f1:.1f} (their F1)")


def _metrics(path: Path) -> dict[str, float]:
    if path.is_file() and path.stat().st_size > _MAX_RESULT_BYTES:
        raise InvalidData(f"{path.name} is too large to be a result of `evaluate --json`")
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        metrics = document["metrics"]
        values = {str(name): float(value) for name, value in metrics.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidData(f"{path.name} is not what `adamix evaluate --json` prints") from None
    if not all(map(math.isfinite, values.values())):
        raise InvalidData(f"{path.name} has a metric that is not a finite number")
    return values
