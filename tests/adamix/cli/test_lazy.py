"""A command is declared by a line and imported when it is called: its module is loaded by nothing else."""

import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from adamix.cli.lazy import Command, LazyGroup
from adamix_server.cli.main import app

HEAVY = {"torch", "transformers", "grpc", "sqlalchemy", "matplotlib", "numpy", "sklearn", "scipy", "yaml"}


def declared(group: Any, path: str = "") -> list[tuple[str, Command, Any]]:
    found = []
    for name, line in group.declared.items():
        command = group.commands[name]
        found.append((f"{path} {name}".strip(), line, command))
        if isinstance(command, LazyGroup):
            found += declared(command, name)
    return found


COMMANDS = declared(typer.main.get_command(app))


@pytest.mark.parametrize(("name", "line", "command"), COMMANDS, ids=[name for name, *_ in COMMANDS])
def test_a_line_says_what_its_command_says(name: str, line: Command, command: Any) -> None:
    assert line.help
    assert line.line().get_short_help_str(1000) == command.get_short_help_str(1000)
    assert command.name == line.name == name.rpartition(" ")[2]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--help", 0),
        ("-h", 0),
        ("--version", 0),
        ("trian", 2),
        ("train -h", 0),
        ("train --backbone x", 2),
        ("serve --backbone x --no-such-flag", 2),
        ("predict", 2),
        ("generate t x --temperature nan", 2),
        ("bench --help", 0),
        ("bench serving --popularity none", 2),
        ("train --backbone minlm --data trec --out z", 2),
        ("train --backbone . --data trec --out z", 2),
        ("evaluate none --data trec", 2),
        ("evaluate . --data trec --routing none", 2),
        ("inspect none", 2),
        ("merge none --out x", 2),
        ("report none --out x.html", 2),
        ("report . --out x.html --data tercc", 2),
        ("report . --out x.html --backbone minlm", 2),
        ("report . --out x.html --device gpu", 2),
        ("report . --out x.txt", 2),
        ("import peft . --backbone minlm --out x", 2),
        ("serve --backbone minlm", 2),
        ("register t none", 2),
    ],
)
def test_help_and_mistakes_load_no_heavy_library(arguments: str, code: int) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['adamix', *{arguments.split()!r}]\n"
        "from adamix_server.cli.main import main\n"
        "try:\n    main()\n"
        f"finally:\n    print('\\n', sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].strip()) == (code, "[]"), done.stderr


def test_a_list_loads_no_command() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from adamix_server.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('adamix.cli.train', 'adamix_server.cli.serve') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("typed", "nearest"), [("trian", "train"), ("versoins", "versions"), ("bnech", "bench")])
def test_a_typo_offers_the_nearest_command(typed: str, nearest: str) -> None:
    result = CliRunner().invoke(app, [typed])
    assert result.exit_code == 2
    assert f"Did you mean '{nearest}'" in result.stderr


def test_a_typo_offers_the_nearest_option() -> None:
    result = CliRunner().invoke(app, ["train", "--bakbone", "x"])
    assert result.exit_code == 2
    assert "--backbone" in result.stderr
