"""The steps from what is on a server to what is declared. Pure: values in, values out.

A plan is exact: every step changes something, and after all of them the next plan is empty. Steps stand in the order in
which they are taken: versions, traffic, pins, grants, and at last what is pruned; so a plan that ends half-way has
taken nothing away before what replaces it was there.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

Action = Literal["register", "traffic", "unpin", "pin", "revoke", "grant", "delete-version", "delete-task"]
# In the order of a plan.
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True)
class ActualTask:
    """A task as a server has it. Versions are digests; `pins` are those of them that are pinned."""

    versions: frozenset[str] = frozenset()
    traffic: Mapping[str, int] = field(default_factory=dict)
    pins: frozenset[str] = frozenset()
    grants: frozenset[str] = frozenset()
    etag: str = ""


@dataclass(frozen=True)
class WantedTask:
    """A task as it should be; None for what is to be left as it is.

    Attributes:
        files: of the versions by file, by their digests.
        versions: those, and those of the server that are named: whatever else there is may be pruned.
    """

    task: str
    files: Mapping[str, Path] = field(default_factory=dict)
    versions: frozenset[str] | None = None
    traffic: Mapping[str, int] | None = None
    pins: frozenset[str] | None = None
    grants: frozenset[str] | None = None


@dataclass(frozen=True)
class Step:
    """One change.

    Attributes:
        digest: of a version, where it is about one.
        file: of a version that is registered.
        traffic, was: of `traffic`, weights by digest, after it and before.
        tenant: of a grant.
        etag: which the task must still have; empty where the plan itself has changed the task before.
    """

    action: Action
    task: str
    digest: str = ""
    file: Path | None = None
    traffic: Mapping[str, int] = field(default_factory=dict)
    was: Mapping[str, int] = field(default_factory=dict)
    tenant: str = ""
    etag: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """As `--json` has it: what belongs to the action and nothing else."""
        found: dict[str, Any] = {"action": self.action, "task": self.task}
        if self.digest:
            found["version"] = self.digest
        if self.file is not None:
            found["file"] = str(self.file)
        if self.action == "traffic":
            found |= {"traffic": dict(self.traffic), "was": dict(self.was)}
        if self.tenant:
            found["tenant"] = self.tenant
        return found


def plan(wanted: Iterable[WantedTask], actual: Mapping[str, ActualTask], *, prune: bool) -> list[Step]:
    """The steps that make `actual` what is wanted.

    Args:
        prune: also delete tasks that are not among the wanted ones, and versions of these that are not named. A version
            that is live or pinned, of a task that does not say its traffic or its pins, stays.
    """
    steps: list[Step] = []
    tasks = list(wanted)
    for task in tasks:
        steps += _steps_of(task, actual.get(task.task, ActualTask()), prune=prune)
    if prune:
        kept = {task.task for task in tasks}
        steps += [Step("delete-task", name, etag=found.etag) for name, found in actual.items() if name not in kept]
    return sorted(steps, key=lambda step: ACTIONS.index(step.action))


def _steps_of(task: WantedTask, actual: ActualTask, *, prune: bool) -> list[Step]:
    name = task.task
    steps = [
        Step("register", name, digest, file) for digest, file in task.files.items() if digest not in actual.versions
    ]
    etag = "" if steps else actual.etag
    if task.traffic is not None and ratio(task.traffic) != ratio(actual.traffic):
        steps.append(Step("traffic", name, traffic=task.traffic, was=actual.traffic, etag=etag))
    if task.pins is not None:
        steps += [Step("unpin", name, digest) for digest in sorted(actual.pins - task.pins)]
        steps += [Step("pin", name, digest) for digest in sorted(task.pins - actual.pins)]
    if task.grants is not None:
        steps += [Step("revoke", name, tenant=tenant) for tenant in sorted(actual.grants - task.grants)]
        steps += [Step("grant", name, tenant=tenant) for tenant in sorted(task.grants - actual.grants)]
    if prune and task.versions is not None:
        live = actual.traffic if task.traffic is None else task.traffic
        pins = actual.pins if task.pins is None else task.pins
        gone = actual.versions - task.versions - live.keys() - pins
        steps += [Step("delete-version", name, digest) for digest in sorted(gone)]
    return steps


def ratio(traffic: Mapping[str, int]) -> Mapping[str, int]:
    """Weights in their lowest terms: 90 to 10 is 9 to 1."""
    divisor = math.gcd(*traffic.values()) or 1
    return {digest: weight // divisor for digest, weight in traffic.items()}
