"""`--push`: release what was trained to a server.

The method knows no server: a package that can reach one says in `publishing` how, when its commands are imported.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from adamix.errors import InvalidConfig

if TYPE_CHECKING:
    from adamix.experiments.release import Publisher, Release

    Connect = Callable[[str, str | None], Publisher]

PushOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Register what was trained with the server there.")
]


class Publishing:
    """Who makes the publisher of an address: nobody, until somebody offers to."""

    def __init__(self) -> None:
        self._connect: Connect | None = None

    def offer(self, connect: "Connect") -> None:
        """Take this one from now on."""
        self._connect = connect

    def to(self, address: str, task: str | None = None) -> "Publisher":
        """The publisher of HOST:PORT, of one task or of several.

        Raises:
            InvalidConfig: the address or the task is malformed, or nobody makes publishers.
            AdamixError: no server answers.
        """
        return self._offered()(address, task)

    def check(self) -> None:
        """Raise InvalidConfig if nobody makes publishers."""
        self._offered()

    def _offered(self) -> "Connect":
        if self._connect is None:
            raise InvalidConfig(
                "--push needs adamix_server, which these commands are used without: run `python -m adamix_server`",
                field="push",
            )
        return self._connect


publishing = Publishing()


def check_push(push: str | None, task: str | None, gates: Sequence[str] | None, split: str | None) -> None:
    """Raise InvalidConfig where the flags of a release do not go together. Asks no server."""
    if push is None:
        for flag, value in (("--task", task), ("--gate", gates), ("--push-split", split)):
            if value:
                raise InvalidConfig(f"{flag} is for --push HOST:PORT")
        return
    publishing.check()
    if task is None:
        raise InvalidConfig("--push needs --task, the id that clients will call", field="task")


def release_to(push: str | None, task: str | None, gates: Sequence[str] | None, split: str | None) -> "Release | None":
    """The release that the flags of `train` describe; None without `--push`.

    Raises:
        InvalidConfig: a flag is wrong, or is given for no `--push`.
        AdamixError: no server answers.
    """
    check_push(push, task, gates, split)
    if push is None or task is None:
        return None
    from adamix.experiments.gates import BASELINE, parse_gate
    from adamix.experiments.release import Release

    parsed = [parse_gate(text) for text in gates or [BASELINE]]
    return Release(task, parsed, split or "validation", publishing.to(push, task))
