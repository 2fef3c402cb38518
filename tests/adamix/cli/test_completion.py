"""A shell that runs the script completes commands, options and values, and no command is loaded for a list of names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adamix_server.cli.main import app


def script(shell: str) -> str:
    result = CliRunner().invoke(app, ["completion", shell])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_asks_the_command(shell: str) -> None:
    assert f"_ADAMIX_COMPLETE=complete_{shell}" in script(shell)


def test_another_shell_is_refused() -> None:
    result = CliRunner().invoke(app, ["completion", "tcsh"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'bash', 'zsh', 'fish'" in result.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("adamix ser", {"serve"}),
        ("adamix ver", {"versions"}),
        ("adamix keys ", {"create", "list", "revoke"}),
        ("adamix bench gen", {"generation"}),
        ("adamix inspect --js", {"--json"}),
        ("adamix completion f", {"fish"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str], tmp_path: Path) -> None:
    command = tmp_path / "adamix"
    command.write_text(f"#!{sys.executable}\nfrom adamix_server.cli.main import main\n\nmain()\n")
    command.chmod(0o755)
    (tmp_path / "script").write_text(script("bash"))
    words = typed.split(" ")
    program = (
        f"source {tmp_path}/script\nCOMP_WORDS=({' '.join(words[:-1])} '{words[-1]}')\nCOMP_CWORD={len(words) - 1}\n"
        '_adamix_completion adamix\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True, env=env)
    assert set(done.stdout.split()) == offered, done.stderr
