"""The table of the `adamix bench` commands. A new one is a line here and a file `command.py` in its room.

The `adamix` command finds `register` through the entry point group `adamix.commands`: this module is loaded with every
list of commands, and imports none of them.
"""

from adamix.cli.lazy import Command, lazy_app

COMMANDS = (
    Command(
        "serving",
        "adamix_bench.serving.command:serving",
        "Throughput and latency of mixed adapters, against the bare backbone and others, in one run.",
    ),
    Command(
        "kernels",
        "adamix_bench.kernels.command:kernels",
        "Time, bytes and share of the copy bandwidth of mixed bottlenecks, against other ways of computing them.",
    ),
    Command(
        "training",
        "adamix_bench.training.command:training",
        "Time and memory of a step of a mixture, against two passes of a single adapter on the same rows.",
    ),
    Command(
        "quality",
        "adamix_bench.quality.command:quality",
        "AdaMix against single adapters of equal compute, on real text and over seeds.",
    ),
    Command(
        "tenants",
        "adamix_bench.tenants.command:tenants",
        "Does any tenant slow, starve or out-spend another? Each row of the proof with its target, on an own server.",
    ),
    Command(
        "generation",
        "adamix_bench.generation.command:generation",
        "Tokens a second of texts for many at once, with many adapters, against transformers in one run.",
    ),
    Command(
        "faces",
        "adamix_bench.faces.command:faces",
        "What HTTP, the client, the command line and files of rows cost, each with its target.",
    ),
)


def _group() -> None:
    """Measure, and say how it was measured."""


bench = lazy_app(COMMANDS, _group)


def register() -> Command:
    """What the `adamix` command lists, and where it finds the rest."""
    return Command("bench", "adamix_bench.cli:bench", "Measure, and say how it was measured.")
