"""What `--backbone NAME` stands for: a directory, a packaged backbone, or a model on the hub.

Says at once if it stands for nothing, and what was tried. Imports neither torch nor transformers.
"""

from pathlib import Path

from adamix import hub
from adamix.backbones import packaged
from adamix.errors import InvalidConfig

_CONFIG = "config.json"


def check(name: str) -> None:
    """Raise InvalidConfig unless there is such a backbone: in less than two seconds, and nothing is converted."""
    if name in packaged.PACKAGES:
        packaged.check(name)
    elif not _is_local(name):
        _on_hub(name)


def resolve(name: str) -> str:
    """A directory or hub id for `--backbone NAME`. Packaged weights that need it are converted, once.

    A model that the hub's client has in its cache is its directory there while the hub cannot be asked.

    Raises:
        InvalidConfig: a packaged name whose package is not installed, a path that is no directory with a model, or a
            name that nobody knows.
    """
    if name in packaged.PACKAGES:
        return str(packaged.directory(name))
    return str(Path(name).expanduser()) if _is_local(name) else _on_hub(name)


def _is_local(name: str) -> bool:
    """Whether a name means this machine's files. Raises InvalidConfig if they are no model."""
    try:
        is_meant = name.startswith((".", "/", "~")) or Path(name).exists()
        if is_meant and not (Path(name).expanduser() / _CONFIG).is_file():
            raise InvalidConfig(f"{name} is not a directory with a {_CONFIG}", field="backbone")
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a home of nobody
        raise InvalidConfig(f"{name[:80]!r} is not a directory", field="backbone") from None
    return is_meant


def _on_hub(name: str) -> str:
    """The name, if the hub can be asked for it; else the directory that is kept of it. Raises InvalidConfig."""
    if not hub.is_name(name):
        raise _nothing(name, "it is no name there")
    why = hub.unreachable()
    if why is None:
        return name
    kept = hub.cached_model(name)
    if kept is None or not (kept / _CONFIG).is_file():
        raise _nothing(name, f"unreachable: {why}; not in its cache")
    return str(kept)


def _nothing(name: str, of_hub: str) -> InvalidConfig:
    return InvalidConfig(hub.nothing("backbone", name, packaged.PACKAGES, of_hub), field="backbone")
