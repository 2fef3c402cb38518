"""Where the value of an option is from: a flag, else the environment, else a file, else its default.

Every command has `--config FILE`, TOML with one table a command (`[serve]`, `[keys.create]`) whose keys are the names
of its options; and every option the variable `ADAMIX_<COMMAND>_<OPTION>`. This module gives both to a command that was
loaded, and knows none by name.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from adamix.cli.terminal import visible

PREFIX = "ADAMIX"
MAX_CONFIG_BYTES = 1 << 20
_CONFIG = "config"
# A file says neither of these: they are about the call that names it.
_NOT_IN_FILES = (_CONFIG, "print-config", "help")
# What stands between // and @ of an address, and what has such a name, is shown to nobody.
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
_SECRET = re.compile(r"(^|-)(secret|password|token|api-key)$")


@dataclass(frozen=True)
class Setting:
    """The value of one option.

    Attributes:
        name: of the option, without dashes.
        value: as the command has it, with credentials masked.
        source: flag, environment, file or default.
        place: the variable, or the file; empty for the other two.
    """

    name: str
    value: Any
    source: str
    place: str = ""


def declare(command: Any, path: tuple[str, ...], also: Iterable[Any] = ()) -> Any:
    """Let a command of click, or each of a family, have its values from the environment and from a file.

    Args:
        path: its names from the root on, as they are typed.
        also: further parameters that a file may set: those of a command that this one calls.
    """
    subcommands = getattr(command, "commands", None)
    if subcommands is not None:
        for name, each in subcommands.items():
            declare(each, (*path, name))
        return command
    for option in _options(command.params):
        declared = option.envvar
        if declared is None:
            option.show_envvar = False  # all have one: it would be said in each line
        others = [declared] if isinstance(declared, str) else declared or []
        option.envvar = [variable(path, name_of(option)), *others]
    known = {name_of(option): option for option in _options([*also, *command.params])}

    def read(ctx: typer.Context, file: Path | None) -> None:
        if file is not None:
            ctx.default_map = _values(file, path, known, ctx.find_root().command)
            ctx.meta[_CONFIG] = str(file)

    config = _config_option(read)
    config.envvar, config.show_envvar = variable(path, _CONFIG), False
    command.params.append(config)
    return command


def variable(path: tuple[str, ...], option: str) -> str:
    """`ADAMIX_<COMMAND>_<OPTION>`."""
    return "_".join((PREFIX, *path, option)).upper().replace("-", "_")


def name_of(option: Any) -> str:
    """`max-batch-tokens`, of an option of click: the first of its long names."""
    word: str = next((word for word in option.opts if word.startswith("--")), option.opts[0])
    return word.lstrip("-")


def settings(ctx: typer.Context) -> list[Setting]:
    """The value of each option of a command that runs, in the order of its help."""
    found = []
    for option in _options(ctx.command.params):
        name = name_of(option)
        if name in _NOT_IN_FILES or option.name not in ctx.params:
            continue
        source, place = _source(ctx, option)
        found.append(Setting(name, masked(name, ctx.params[option.name]), source, place))
    return found


def masked(name: str, value: Any) -> Any:
    """A value as it may be shown, plain as JSON has it: without the credentials of an address, and no secret at all."""
    if isinstance(value, list | tuple):
        return [masked(name, each) for each in value]
    if isinstance(value, bool | int | float) or value is None:
        return value
    return "***" if _SECRET.search(name) else _CREDENTIALS.sub("***", str(value))


def explain(error: Any) -> None:
    """Say in a mistake of click about a parameter where its value is from, unless it was typed."""
    ctx, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if ctx is None or parameter is None:
        return
    _, place = _source(ctx, parameter)
    if place:
        error.message = f"{error.message.rstrip('.')} (from {visible(place)})."


def _source(ctx: Any, option: Any) -> tuple[str, str]:
    source = ctx.get_parameter_source(option.name)
    if source is None or source.name in ("COMMANDLINE", "PROMPT"):
        return "flag", ""
    if source.name == "ENVIRONMENT":
        import os

        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
        return "environment", next((name for name in names if os.environ.get(name)), "")
    if source.name == "DEFAULT_MAP":
        return "file", ctx.meta.get(_CONFIG, "")
    return "default", ""


def _options(parameters: Iterable[Any]) -> list[Any]:
    return [each for each in parameters if each.param_type_name == "option" and each.opts]


def _config_option(read: Any) -> Any:
    """`--config` as click has it, which is processed before all others."""

    def alone(
        config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE",
                is_eager=True,
                expose_value=False,
                callback=read,
                help="TOML with a table of this command's options.",
            ),
        ] = None,
    ) -> None:
        raise AssertionError(config)  # never called: only its parameter is wanted

    app = typer.Typer(add_completion=False)
    app.command()(alone)
    return typer.main.get_command(app).params[0]


def _values(file: Path, path: tuple[str, ...], known: Mapping[str, Any], root: Any) -> dict[str, Any]:
    """What the file says of one command, by the names of its parameters. Raises typer.BadParameter."""
    document = _read(file)
    commands = getattr(root, "list_commands", None)
    if commands is not None:
        # A root without a list is a command that runs alone, as in tests of it.
        names = commands(None)
        for name in document:
            if name not in names:
                raise _bad(file, f"[{name}] is no command", name, names)
    table: Any = document
    for depth, name in enumerate(path, 1):
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise _bad(file, f"{'.'.join(path[:depth])} is not a table: write [{'.'.join(path[:depth])}]")
    where = ".".join(path)
    values = {}
    for key, value in table.items():
        if key in _NOT_IN_FILES:
            raise _bad(file, f"[{where}] {key} is given as a flag")
        if key not in known:
            raise _bad(file, f"[{where}] {key} is no option of `adamix {' '.join(path)}`", key, known)
        values[known[key].name] = _value(file, f"[{where}] {key}", known[key], value)
    return values


def _value(file: Path, what: str, option: Any, value: Any) -> Any:
    """A value as it would be typed, which click then reads."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise _bad(file, f"{what} must be true or false")
        return value
    values = value if isinstance(value, list) else [value]
    if not option.multiple and isinstance(value, list):
        raise _bad(file, f"{what} takes one value, not a list")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise _bad(file, f"{what} must be a text or a number{' in each place' if option.multiple else ''}")
    texts = [str(each) for each in values]
    return texts if option.multiple else texts[0]


def _read(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():
            raise _bad(file, "there is no such file")
        with file.open("rb") as opened:
            data = opened.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _bad(file, getattr(error, "strerror", None) or "cannot be read") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise _bad(file, f"it has over {MAX_CONFIG_BYTES >> 20} MiB: that is no file of settings")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise _bad(file, "it is not UTF-8, and so not TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise _bad(file, f"it is not TOML: {error}") from None
    except RecursionError:
        raise _bad(file, "it is nested too deeply") from None


def _bad(file: Path, what: str, typed: str = "", known: Iterable[str] = ()) -> typer.BadParameter:
    near = get_close_matches(typed, [*known], 1)
    offer = f"; did you mean {near[0]}?" if near else ""
    return typer.BadParameter(visible(f"{file}: {what[:300]}{offer}"), param_hint="--config")
