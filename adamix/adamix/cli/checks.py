"""Whether what a command is given is there and goes together: asked before anything is imported that is slow to load.

Each raises InvalidConfig with the way out: wrong usage, exit code 2. What these say is said again, by whoever then
reads the file or loads the name: something may have become of it meanwhile. Knows neither torch nor a server.
"""

from pathlib import Path

from adamix.errors import InvalidConfig
from adamix.experiments.plan import Plan

DEVICES = ("auto", "cpu", "cuda")


def existing(path: Path, what: str = "") -> None:
    """A file or directory that is to be read.

    Args:
        what: the flag that names it; empty for an argument.
    """
    try:
        is_there = path.exists()
    except (OSError, ValueError):
        is_there = False
    if not is_there:
        raise InvalidConfig(f"{what}{': ' if what else ''}{path}: No such file or directory", field=what.lstrip("-"))


def names(backbone: str | None = None, data: str | None = None, *, split: str | None = None) -> None:
    """A backbone, data and their split, each if it is given. Takes less than two seconds, also without a network."""
    if split is not None:
        from adamix.data.task import SPLITS

        if split not in SPLITS:
            raise InvalidConfig(f"--split must be one of {', '.join(SPLITS)}, not {split[:40]!r}", field="split")
    if data is not None:
        from adamix.data import sources

        sources.check(data)
    if backbone is not None:
        from adamix.backbones import names as known

        known.check(backbone)


def device(name: str) -> None:
    """Its form: whether there is a CUDA device, torch has to say."""
    if name not in DEVICES:
        raise InvalidConfig(f"--device must be auto, cpu or cuda, not {name!r}", field="device")


def form(wanted: Plan) -> None:
    """The task type and the device of a training, whatever there is."""
    from adamix.data.named import check_task_type

    device(wanted.device)
    check_task_type(wanted.task_type)


def plan(wanted: Plan) -> None:
    """What a training names: also its backbone and data, unless those are rows that a program has."""
    form(wanted)
    names(wanted.backbone, wanted.data if isinstance(wanted.data, str) else None)
