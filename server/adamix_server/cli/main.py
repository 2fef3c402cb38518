"""The `adamix` command: the method's commands, those that run a server or talk to one, and those of other packages.

stdout carries results only (`--json`: one document), stderr progress and logs; the exit code is 0, 1 for a failure or
2 for wrong usage.
"""

import os
import sys
from typing import TYPE_CHECKING

from adamix.cli import commands as method
from adamix.cli.application import adamix
from adamix.cli.lazy import lazy_app
from adamix.cli.push import publishing
from adamix_server.cli import commands as server

if TYPE_CHECKING:
    from adamix.experiments.release import Publisher

# Packages that bring commands of their own, so that this one needs to import none of them.
PLUGIN_GROUP = "adamix.commands"


def _publisher(address: str, task: str | None) -> "Publisher":
    from adamix_server.cli import push

    return push.connect(address, task)


# The method trains; where its adapters go is this package's part.
publishing.offer(_publisher)
app = lazy_app([*method.COMMANDS, *server.COMMANDS], adamix, plugins=PLUGIN_GROUP)


def main() -> None:
    """Entry point of the `adamix` command."""
    # Before torch is imported: waiting threads would otherwise spin, on cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "_ADAMIX_COMPLETE" in os.environ:
        from adamix.cli.completion import answer_shells

        answer_shells()
    if sys.argv[1:2] == ["serve"]:
        from adamix_server.telemetry import logs

        # Before there is anything to say: also a sentence on wrong usage waits for no reader.
        logs.divert("supervisor")
    app()
