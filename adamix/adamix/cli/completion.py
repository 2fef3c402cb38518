"""`adamix completion`: the script that lets a shell complete commands and options."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from adamix.cli.terminal import exit_codes

# What the script asks the command by.
VARIABLE = "_ADAMIX_COMPLETE"


class Shell(StrEnum):
    """Those whose completion typer writes."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def answer_shells() -> None:
    """Let typer answer what the scripts ask, which it does only of applications that install them themselves."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()


def completion(
    shell: Annotated[Shell, typer.Argument(help='To use it at once: eval "$(adamix completion bash)".')],
) -> None:
    """Print the script that completes commands and options in a shell."""
    with exit_codes():
        from typer import completion as of_typer

        script: Any = vars(of_typer)["get_completion_script"]
        print(script(prog_name="adamix", complete_var=VARIABLE, shell=shell.value))
