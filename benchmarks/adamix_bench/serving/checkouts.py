"""Checkouts of adamix: this one, and others that are run by the interpreter of their own `.venv`."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from adamix.errors import InvalidConfig

_PROBE_S = 60.0
_PROBE = "import adamix_server; print(adamix_server.__file__)"


@dataclass(frozen=True)
class Checkout:
    """A directory with the source of adamix, and the interpreter that runs it.

    Attributes:
        environment: of its processes.
        commit: what git calls its state; empty where git does not know.
    """

    directory: Path
    python: str
    environment: Mapping[str, str]
    commit: str

    @classmethod
    def this(cls) -> Self:
        """The one whose code this is, run as this process is."""
        directory = Path(__file__).resolve().parents[3]
        return cls(directory, sys.executable, dict(os.environ), _commit(directory))

    @classmethod
    def at(cls, directory: Path) -> Self:
        """Another one, run by the interpreter of its `.venv`.

        Raises:
            InvalidConfig: there is none, or it cannot be run.
        """
        directory = directory.resolve()
        if _project(directory) != "adamix":
            raise InvalidConfig(f"--against {directory} is not a checkout of adamix", field="against")
        python = directory / ".venv" / "bin" / "python"
        if not python.exists():
            raise InvalidConfig(f"--against {directory} has no .venv: run `make setup` there", field="against")
        # Its own packages: neither those that this process was told of, nor what lies in the current directory.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        environment["PYTHONSAFEPATH"] = "1"
        source = _server_source(str(python), environment)
        if source is None or not source.is_relative_to(directory):
            found = "no server" if source is None else f"the server of {source.parent}"
            raise InvalidConfig(
                f"--against {directory}: its .venv has {found}; run `make setup` there", field="against"
            )
        return cls(directory, str(python), environment, _commit(directory))


def _project(directory: Path) -> str:
    """The name in its `pyproject.toml`; empty if there is none."""
    try:
        document = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    project = document.get("project")
    return str(project.get("name", "")) if isinstance(project, dict) else ""


def _server_source(python: str, environment: Mapping[str, str]) -> Path | None:
    """The file that `import adamix_server` reads there; None if it cannot."""
    try:
        done = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, text=True, env=environment, timeout=_PROBE_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(done.stdout.strip()).resolve()


def _commit(directory: Path) -> str:
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
