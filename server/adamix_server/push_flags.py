"""`--push`: gives the method's `train` and `sweep` flags for a server, which the method itself knows nothing of.

A command is extended by a function whose parameters become flags of it. The function runs before the command, and
leaves in the context what the command will look for there.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from adamix.cli import exit_codes
from adamix.cli.session import ReleaseSession
from adamix.errors import InvalidConfig, InvalidRequest

PushOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Register what was trained with the server there.")
]


def extend(app: typer.Typer, name: str, prepare: Callable[..., None]) -> None:
    """Add the parameters of `prepare` to the flags of a command.

    Args:
        prepare: called with the context first, before the command; both must take it as `ctx`.
    """
    ((info, command),) = (
        (info, info.callback)
        for info in app.registered_commands
        if info.callback is not None and info.callback.__name__ == name
    )
    signature = inspect.signature(command)
    added = [parameter for parameter in inspect.signature(prepare).parameters.values() if parameter.name != "ctx"]

    def extended(ctx: typer.Context, **values: Any) -> None:
        with exit_codes():
            prepare(ctx, **{parameter.name: values.pop(parameter.name) for parameter in added})
        command(ctx=ctx, **values)

    extended.__name__, extended.__doc__ = command.__name__, command.__doc__
    extended.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what inspect, and so typer, asks for
        parameters=[*signature.parameters.values(), *added]
    )
    extended.__annotations__ = {}
    info.callback = extended


def push_training(
    ctx: typer.Context,
    push: PushOption = None,
    task: Annotated[str | None, typer.Option(help="--push: the id that clients will call.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="--push: register only if `METRIC>=X`, `METRIC<=X`, `no-worse:METRIC` or `baseline`. May be repeated."
            "  (default: baseline)"
        ),
    ] = None,
    push_split: Annotated[
        str | None, typer.Option(help="--push: the rows to judge by, validation or test.  (default: validation)")
    ] = None,
) -> None:
    """Leave a session that publishes in the context of `train`."""
    if push is None:
        given = {"--task": task, "--gate": gate, "--push-split": push_split}
        for flag, value in given.items():
            if value:
                raise InvalidConfig(f"{flag} is for --push HOST:PORT")
        return
    if task is None:
        raise InvalidConfig("--push needs --task, the id that clients will call", field="task")
    from adamix.experiments.gates import BASELINE, parse_gate
    from adamix.experiments.release import Release
    from adamix_server.catalog.names import check_name
    from adamix_server.push import Push

    try:
        check_name(task, "--task")
    except InvalidRequest as error:
        raise InvalidConfig(error.message, field="task") from None
    gates = [parse_gate(text) for text in gate or [BASELINE]]
    ctx.obj = ReleaseSession(Release(task, gates, push_split or "validation", Push(push)))


def push_sweep(ctx: typer.Context, push: PushOption = None) -> None:
    """Leave a publisher in the context of `sweep`."""
    if push is not None:
        from adamix_server.push import Push

        ctx.obj = Push(push)
