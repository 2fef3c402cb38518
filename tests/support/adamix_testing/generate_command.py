"""`adamix generate` in a test: as a person types it, and as a process."""

import subprocess
import sys
from typing import Any

from typer.testing import CliRunner

from adamix_server.cli.main import app

# Where nothing listens.
NOWHERE = "127.0.0.1:1"


def run(*arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Any:
    """The result of `adamix generate …` that ends with this code."""
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def adamix(*arguments: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "adamix_server", "generate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
