"""Taking the steps of a plan: kind by kind, those of a kind several at once; after a kind with a failure no other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from adamix.errors import AdamixError
from adamix_server.cli.declared.plan import Step
from adamix_server.cli.many import Ended, Progress, run_many

if TYPE_CHECKING:
    from adamix_client import Client


@dataclass(frozen=True)
class Taken:
    """What became of a plan: steps that were taken, those that failed, and those that were not begun."""

    done: Sequence[Step]
    failed: Sequence[tuple[Step, AdamixError]]
    left: Sequence[Step]
    was_interrupted: bool


def carry_out(client: "Client", steps: Sequence[Step], *, jobs: int, progress: Progress) -> Taken:
    """Take the steps, in the order of a plan."""
    ended: list[Ended[Step, object]] = []
    left: list[Step] = []
    was_interrupted = False

    def told(done: int, failed: int) -> None:
        progress(len(ended) + done, failed)

    for _, group in groupby(steps, key=lambda step: step.action):
        of_a_kind = list(group)
        if was_interrupted or any(one.error is not None for one in ended):
            left += of_a_kind
            continue
        run = run_many(of_a_kind, lambda step: _TAKE[step.action](client, step), jobs=jobs, progress=told)
        ended += run.ended
        left += run.left
        was_interrupted = run.was_interrupted
    return Taken(
        done=[one.item for one in ended if one.error is None],
        failed=[(one.item, one.error) for one in ended if one.error is not None],
        left=left,
        was_interrupted=was_interrupted,
    )


def _register(client: "Client", step: Step) -> object:
    # The traffic comes later, when all its versions are there; and a file that changed meanwhile is not what was shown.
    return client.register(step.task, step.file or b"", expected_digest=step.digest, make_live=False)


_TAKE: dict[str, Callable[["Client", Step], object]] = {
    "register": _register,
    "traffic": lambda client, step: client.set_traffic(step.task, dict(step.traffic), etag=step.etag),
    "unpin": lambda client, step: client.pin_version(step.task, step.digest, pinned=False),
    "pin": lambda client, step: client.pin_version(step.task, step.digest),
    "revoke": lambda client, step: client.revoke_grant(step.task, step.tenant),
    "grant": lambda client, step: client.grant_task(step.task, step.tenant),
    "delete-version": lambda client, step: client.delete_version(step.task, step.digest),
    "delete-task": lambda client, step: client.delete_task(step.task, etag=step.etag),
}
