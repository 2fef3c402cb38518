"""adamix: train mixtures of adaptations on a frozen transformer and merge each into one small adapter file.

For programs and notebooks: `fit`, `merge`, `load`, `evaluate`, `inspect`, `report`. Each is imported when it is asked
for; the package itself imports nothing, because server processes that must not load torch import `adamix.errors` and
`adamix.files` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamix.api.adapter import Adapter, load
    from adamix.api.evaluating import Measured, evaluate
    from adamix.api.fitted import Fitted
    from adamix.api.fitting import fit
    from adamix.api.inspecting import inspect
    from adamix.api.merging import merge
    from adamix.api.reporting import report

__all__ = ["Adapter", "Fitted", "Measured", "evaluate", "fit", "inspect", "load", "merge", "report"]

_HOME_OF = {
    "Adapter": "adapter",
    "Fitted": "fitted",
    "Measured": "evaluating",
    "evaluate": "evaluating",
    "fit": "fitting",
    "inspect": "inspecting",
    "load": "adapter",
    "merge": "merging",
    "report": "reporting",
}


def __getattr__(name: str) -> Any:
    if (module := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
