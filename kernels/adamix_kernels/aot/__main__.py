"""Compile the kernels for devices that are not here; status 1 when something is wrong with one of them.

This is a process of its own, because Triton's compiler and its interpreter cannot share one. Results go to stdout, the
rest to stderr.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adamix_kernels.aot.table import Choice, Row, rows, sources_digest
from adamix_kernels.gpu.specimen import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # However this ends, the processes that compile end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # They inherit both of these.
    os.environ.pop("TRITON_INTERPRET", None)
    if options.fresh:
        os.environ["TRITON_ALWAYS_COMPILE"] = "1"
    import triton

    choice = Choice(full=options.full, only=options.only)
    try:
        table = list(_reported(rows(choice, options.targets, options.processes)))
    except KeyboardInterrupt:
        print("aot: interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"aot: {error}", file=sys.stderr)
        return 2
    found = [row.to_json() for row in table]
    faulty = sum(1 for row in table if row.problems)
    print(f"aot: {len(table)} compiled by triton {triton.__version__}, {faulty} with problems", file=sys.stderr)
    if options.json:
        about = {"sources": sources_digest(), "triton": triton.__version__, "full": options.full}
        print(json.dumps(about | {"aot": found}))
    elif options.compare:
        print(*_differences(found, json.loads(options.compare.read_text("utf-8"))["aot"]), sep="\n")
    else:
        for row in found:
            print(*(value for name, value in row.items() if name != "problems"), sep="  ")
    return 1 if faulty else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adamix_kernels.aot", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every entry of the plans, not one for each kernel")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels and plans that have this in their name")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="compilers side by side")
    parser.add_argument("--fresh", action="store_true", help="compile what Triton's cache has, too")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="print what differs from the table in this document"
    )
    return parser


def _reported(table: Iterable[Row]) -> Iterable[Row]:
    """The same rows, with their problems told at once."""
    for count, row in enumerate(table, start=1):
        for problem in row.problems:
            print(f"aot: {row.name}: {problem}", file=sys.stderr)
        if sys.stderr.isatty():
            print(f"aot: {count} compiled", end="\r", file=sys.stderr, flush=True)
        yield row


def _differences(found: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each row that was not in the known table, or was other there."""
    names = ("kernel", "plan", "target")
    before = {tuple(row[name] for name in names): row for row in known}
    lines = []
    for row in found:
        name = tuple(row[name] for name in names)
        old = before.get(name)
        changed = [
            f"{key} {old.get(key)} -> {row.get(key)}" for key in row if old is not None and old.get(key) != row[key]
        ]
        if old is None or changed:
            lines.append(f"{', '.join(name)}: {', '.join(changed) or 'new'}")
    return [*lines, f"{len(lines)} of {len(found)} differ"]


if __name__ == "__main__":
    sys.exit(main())
