"""The commands that make and measure adapters, one file each; importing this package adds them to `app`.

Thin: every command parses, calls one function and prints. Heavy libraries are imported inside the commands, so that
`--help` answers at once.
"""

from adamix.cli import evaluate, few_shot, glue, inspect, interop, merge, recipes, report, sweep, train
from adamix.cli.push import publishing
from adamix.cli.terminal import JsonFlag, app, exit_codes, stderr

__all__ = [
    "JsonFlag",
    "app",
    "evaluate",
    "exit_codes",
    "few_shot",
    "glue",
    "inspect",
    "interop",
    "merge",
    "publishing",
    "recipes",
    "report",
    "stderr",
    "sweep",
    "train",
]
