"""What all commands share: exit codes, and how results and progress are shown.

stdout carries results only (with `--json` one JSON document), stderr progress and errors; the exit code is 0, 1 for
a failure, 2 for wrong usage or 130 after Ctrl-C. What comes from a file or a server is a stranger's: `visible` takes
from it what a terminal would act on.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from adamix.errors import AdamixError, Cancelled, InvalidConfig

if TYPE_CHECKING:
    from adamix.files.adapter_file import AdapterFile

# As a shell says that a command was ended by Ctrl-C.
INTERRUPTED = 130
_SURROGATES = "surrogates not allowed"
_SHOWN_CHARS = 80
# What a terminal acts on: the control characters but tab and newline, and those that turn the direction of writing.
_STEERING = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\t\n"
}


def visible(text: str) -> str:
    """A text as a terminal may be given it: nothing in it clears a screen, renames a window or reads backwards."""
    return text.translate(_STEERING)


class Screen(Console):
    """A console of rich whose strings, cells of tables too, go through `visible`."""

    def render_str(self, text: str, **how: Any) -> Text:
        """As rich does, without what a terminal would act on."""
        return super().render_str(visible(text), **how)


stderr = Screen(stderr=True, highlight=False)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error into one red line on stderr and an exit code: 2 for wrong usage, 130 for Ctrl-C, 1 for any other.

    Only errors whose text is meant for people are turned; a bug keeps its traceback.
    """
    try:
        yield
    except InvalidConfig as error:
        _fail(error.message, 2)
    except Cancelled as error:
        _fail(error.message, INTERRUPTED)
    except AdamixError as error:
        _fail(error.message, 1)
    except BrokenPipeError:
        # Nobody reads any more, as after `| head`: no error to tell of. The frame ends the command, with exit code 1.
        raise
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except UnicodeEncodeError as error:
        if error.reason != _SURROGATES:
            raise
        # An argument, a variable or the name of a file that is no text.
        _fail(f"{str(error.object)[:_SHOWN_CHARS]!r} is not valid UTF-8", 2)
    except (KeyboardInterrupt, typer.Abort):
        # The second is Ctrl-C at a question.
        _fail("interrupted", INTERRUPTED)


def print_json(document: dict[str, Any]) -> None:
    from adamix.evaluation.metrics import finite_json

    print(json.dumps(finite_json(document), indent=2))


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """On one line; None is what `finite_json` has left of a value that was no finite number."""
    return "  ".join(f"{name} {'nan' if value is None else f'{value:.4f}'}" for name, value in metrics.items())


def summary(adapter: "AdapterFile") -> dict[str, Any]:
    count, head = adapter.num_parameters()
    return {"parameters": {"adapter": count, "head": head}, "bytes": adapter.num_bytes, "digest": adapter.digest}


def _fail(message: str, code: int) -> None:
    stderr.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)
