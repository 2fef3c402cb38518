"""The commands that make and measure adapters, one file each; `commands` is the table of them.

Thin: every command parses, calls one function and prints. Its module is imported when it is called, and heavy libraries
when its arguments have been checked. The names here are loaded from their modules when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamix.cli.application import app
    from adamix.cli.push import publishing
    from adamix.cli.terminal import JsonFlag, exit_codes, stderr

__all__ = ["JsonFlag", "app", "exit_codes", "publishing", "stderr"]

_HOME_OF = {
    "JsonFlag": "terminal",
    "app": "application",
    "exit_codes": "terminal",
    "publishing": "push",
    "stderr": "terminal",
}


def __getattr__(name: str) -> Any:
    if (module := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
