"""`adamix traffic` and `rollback`: which versions answer a task.

Thin, as the other commands: parse, call one function, print.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix.errors import InvalidConfig
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption
from adamix_server.cli.printing import plain, shares, show
from adamix_server.cli.task_call import find_versions, task_call
from adamix_server.cli.tasks import TaskArgument
from adamix_server.limits.control import MAX_TRAFFIC_SHARES, MAX_TRAFFIC_WEIGHT

if TYPE_CHECKING:
    from adamix_client import Task


def traffic(
    task: TaskArgument,
    share: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIGEST[=WEIGHT]]...", help="Versions and their weights; one alone answers all. None: say it."
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Share a task's traffic among versions, or say how it is shared."""
    with exit_codes():
        asked = parse_shares(share or ())
        with task_call(task, server, api_key_file) as client:
            if not asked:
                _show(client.get_task(task), as_json=json_)
                return
            digests = find_versions(client, task, [prefix for prefix, _ in asked])
            if len(set(digests)) < len(digests):
                raise InvalidConfig("the same version is named twice", field="share")
            weights = dict(zip(digests, (weight for _, weight in asked), strict=True))
            _show(client.traffic(task, weights), as_json=json_)


def rollback(
    task: TaskArgument,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Make the version that was live before the current one live again."""
    with task_call(task, server, api_key_file) as client:
        _show(client.rollback(task), as_json=json_)


def parse_shares(texts: Sequence[str]) -> list[tuple[str, int]]:
    """`DIGEST=WEIGHT`, or one DIGEST alone -> (what was typed of the digest, weight). Raises InvalidConfig."""
    if len(texts) > MAX_TRAFFIC_SHARES:
        raise InvalidConfig(f"at most {MAX_TRAFFIC_SHARES} versions share a task's traffic", field="share")
    found = []
    for text in texts:
        digest, equals, weight = text.partition("=")
        if not equals and len(texts) == 1:
            weight = "1"
        if not (weight.isascii() and weight.isdecimal() and 1 <= len(weight) <= 9):
            raise InvalidConfig(f"{text[:80]!r} is not DIGEST=WEIGHT", field="share")
        if not 1 <= int(weight) <= MAX_TRAFFIC_WEIGHT:
            raise InvalidConfig(f"a weight is in 1..{MAX_TRAFFIC_WEIGHT:,}, not {int(weight):,}", field="share")
        found.append((digest, int(weight)))
    return found


def _show(task: "Task", *, as_json: bool) -> None:
    text = f"{task.task}: {shares(task.traffic, whole=True) or 'nothing is live'}"
    show({"task": plain(task)}, text, as_json=as_json)
