"""Every limit the server sets, each said once: its value, what is refused beyond it, and the test that meets it.

They bound the memory and the time that one caller, one connection or one file can take, so they are constants and no
settings; where a setting decides, the line says which. `docs/limits.md` is written from here
(`python -m adamix_server.limits > docs/limits.md`). A line is written where its constant is made, so that no number
can be in force and not in the table. Knows no module that keeps a limit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamix_server.limits.table import Limit

    TABLE: tuple[Limit, ...]

_CHAPTERS = (
    "messages",
    "generation",
    "calls",
    "http",
    "open_ai",
    "chats",
    "adapters",
    "control",
    "tenants",
    "quotas",
    "audit",
    "operators",
    "commands",
    "files",
)


def __getattr__(name: str) -> Any:
    # Whoever asks for one chapter, a command say, is not made to load what all the others need.
    if name != "TABLE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return tuple(row for room in _CHAPTERS for row in import_module(f"{__name__}.{room}").chapter.rows)
