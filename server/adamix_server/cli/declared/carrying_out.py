"""Taking the steps of a plan: kind by kind, those of a kind several at once; after a kind with a failure no other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from threading import Event
from typing import TYPE_CHECKING

from adamix.cli.progress import Shown
from adamix.errors import Aborted, AdamixError
from adamix_server.cli.declared.plan import Step
from adamix_server.cli.many import Ended, run_many

if TYPE_CHECKING:
    from adamix_client import Client


@dataclass(frozen=True)
class Taken:
    """What became of a plan: steps that were taken, those that failed, and those that were not begun."""

    done: Sequence[Step]
    failed: Sequence[tuple[Step, AdamixError]]
    left: Sequence[Step]


def carry_out(client: "Client", steps: Sequence[Step], *, jobs: int, shown: Shown, stop: Event) -> Taken:
    """Take the steps, in the order of a plan; none begins once `stop` is set."""
    ended: list[Ended[Step, object]] = []
    left: list[Step] = []
    for action, group in groupby(steps, key=lambda step: step.action):
        if any(one.error is not None for one in ended):
            left += group
            continue
        run = run_many(list(group), partial(_TAKE[action], client), jobs=jobs, shown=shown, stop=stop)
        ended += run.ended
        left += run.left
    return Taken(
        done=[one.item for one in ended if one.error is None],
        failed=[(one.item, one.error) for one in ended if one.error is not None],
        left=left,
    )


def _register(client: "Client", step: Step) -> object:
    # The traffic comes later, when all its versions are there; and a file that changed meanwhile is not what was shown.
    return client.register(step.task, step.file or b"", expected_digest=step.digest, make_live=False)


def _share(client: "Client", step: Step) -> object:
    etag = step.etag
    if not etag:
        # The plan itself has changed the task; whether anybody else has, its traffic says.
        found = client.get_task(step.task)
        if dict(found.traffic) != step.was:
            raise Aborted(f"the traffic of {step.task} was changed meanwhile; the same command looks again")
        etag = found.etag
    return client.traffic(step.task, step.traffic, etag=etag)


_TAKE: dict[str, Callable[["Client", Step], object]] = {
    "register": _register,
    "traffic": _share,
    "unpin": lambda client, step: client.unpin(step.task, step.digest),
    "pin": lambda client, step: client.pin(step.task, step.digest),
    "revoke": lambda client, step: client.revoke_grant(step.task, step.tenant),
    "grant": lambda client, step: client.grant_task(step.task, step.tenant),
    "delete-version": lambda client, step: client.delete_version(step.task, step.digest),
    "delete-task": lambda client, step: client.delete_task(step.task, etag=step.etag),
}
