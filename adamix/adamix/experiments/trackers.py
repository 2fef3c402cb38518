"""Where a training may send its curves while it runs: `--report-to`. Which there are, and which package each needs.

Looks for packages and imports none of them: the integrations are those of transformers.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from adamix.errors import InvalidConfig

# The packages of each tracker, of which one must be there; the first is the one to install.
TRACKERS: Mapping[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
_NONE = "none"


def read_trackers(text: str) -> tuple[str, ...]:
    """`tensorboard,wandb`; `none` is no tracker. Raises InvalidConfig for one that is not known."""
    if text == _NONE:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in TRACKERS:
            raise InvalidConfig(
                f"--report-to must be {_NONE} or some of {', '.join(TRACKERS)}, not {name[:40]!r}", field="report_to"
            )
    return tuple(dict.fromkeys(names))


def check_installed(names: Sequence[str]) -> None:
    """Raise InvalidConfig, with what to type, where the package of a tracker is missing."""
    for name in names:
        packages = TRACKERS[name]
        if not any(find_spec(package) for package in packages):
            raise InvalidConfig(
                f"--report-to {name} needs the package {packages[0]}: pip install {packages[0]}",
                reason="PACKAGE_MISSING",
                field="report_to",
            )
