"""Commands that are declared by a line and imported when they are asked for.

A group knows of each command its name, its line in the list of `--help`, and where it is. The module there, and all
that it imports, is loaded when that command is called, or asked for its own help. This module knows no command.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from adamix.cli import sources

# Plain help: in the panels of rich the longer names of flags are cut off in a terminal of 80 columns.
_LOOK: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
_CONTEXT = {"help_option_names": ["--help", "-h"]}


@dataclass(frozen=True)
class Command:
    """One command of a group.

    Args:
        name: as it is typed.
        where: `module:attribute`, a function whose parameters typer reads, or a `typer.Typer` of several commands.
        help: the first sentence of its docstring, which a list shows without importing it.
        context: settings of click's context.
        also: where a command is whose options this one takes as well and hands on.
    """

    name: str
    where: str
    help: str
    context: Mapping[str, Any] = field(default_factory=dict)
    also: str = ""

    def load(self) -> Any:
        """The command as click has it. Imports its module."""
        module, _, attribute = self.where.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(**_LOOK)
            alone.command(self.name, context_settings=dict(self.context))(found)
            return typer.main.get_command(alone)
        made = typer.main.get_group(found)  # of one command as well
        made.name = self.name
        return made

    def line(self) -> TyperCommand:
        """What a list shows of it. Imports nothing."""
        return TyperCommand(self.name, help=self.help)


class LazyGroup(TyperGroup):
    """A group whose commands are loaded one by one. Classes that `lazy_app` makes of it say which."""

    declared: "Table"

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # From the root on; the root sets it for the groups in it.
        self.path: tuple[str, ...] = ()
        self.commands = _Loaded(self)
        self._only_lists = False

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        """Their names. Loads none."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, loaded; or its line, in a list."""
        if self._only_lists and cmd_name in self.declared:
            return self.declared[cmd_name].line()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As click does, of the lines alone."""
        self._only_lists = True
        try:
            super().format_commands(ctx, formatter)
        finally:
            self._only_lists = False

    def invoke(self, ctx: Any) -> Any:
        """As click does; a mistake in a value says where it is from."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            sources.explain(error)
            raise

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """As click does, of the lines alone."""
        self._only_lists = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._only_lists = False


class Table(Mapping[str, Command]):
    """Commands by name, in the order of a list; after them those that other distributions bring.

    Args:
        commands: the group's own.
        plugins: group of entry points. Each has the name of its command and leads to a function without arguments that
            gives the `Command`. They are looked up for a list, or for a name that is not here.
    """

    def __init__(self, commands: Iterable[Command], plugins: str | None = None) -> None:
        self._own = {command.name: command for command in commands}
        self._plugins = plugins
        self._all: dict[str, Command] | None = None

    def __getitem__(self, name: str) -> Command:
        own = self._own.get(name)
        return own if own is not None else self._whole()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def _whole(self) -> dict[str, Command]:
        if self._all is None:
            self._all = dict(self._own)
            if self._plugins is not None:
                from importlib import metadata  # only here: it takes longer than the rest

                for point in metadata.entry_points(group=self._plugins):
                    self._all.setdefault(point.name, point.load()())
        return self._all


class _Loaded(MutableMapping[str, Any]):
    """The commands of a table as click has them, each loaded when it is looked up."""

    def __init__(self, group: LazyGroup) -> None:
        self._group = group
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._load(self._group.declared[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._group.declared), **self._loaded})

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _load(self, command: Command) -> Any:
        loaded = command.load()
        path = (*self._group.path, command.name)
        if isinstance(loaded, LazyGroup):
            loaded.path = path
            return loaded
        also = Command(command.name, command.also, "").load().params if command.also else ()
        return sources.declare(loaded, path, also)


def lazy_app(commands: Iterable[Command], callback: Callable[..., None], *, plugins: str | None = None) -> typer.Typer:
    """The application, or group, of these commands.

    Args:
        commands: in the order in which a list shows them.
        callback: whose parameters are the options before the command, and whose docstring is the help.
        plugins: as for `Table`.
    """
    group = type("Group", (LazyGroup,), {"declared": Table(commands, plugins)})
    app = typer.Typer(cls=group, context_settings=dict(_CONTEXT), **_LOOK)
    app.callback()(callback)
    return app


def family(line: str) -> typer.Typer:
    """A group whose commands stand in one module, loaded as a whole: decorate them with its `command`."""
    return typer.Typer(help=line, context_settings=dict(_CONTEXT), **_LOOK)
