"""Tells watchers how a tenant's tasks stand, and every change from then on.

A watcher compares the snapshot it has told of with the newest one, so it can neither miss a change nor hear of it
twice; one that reads slowly hears of the newest state, not of every step. It hears when it has been told all there was,
and from then on a sign of life in every silence, by which it tells a quiet server from a dead connection.

One comparison looks at the tasks that the newest snapshot says it differs in (at every task of the server, if steps
were left out) and serves all watchers that wait for the same step. Knows the catalog's view; knows neither gRPC nor how
a snapshot comes to be.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from typing import Any

from adamix.errors import Overloaded
from adamix_server import retry
from adamix_server.catalog.rows import Snapshot, TaskRow
from adamix_server.frontend.boundary.admission import Admission, draining
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.limits.control import MAX_WATCHERS
from adamix_server.telemetry.metrics import Recorder

HEARTBEAT_S = 15.0


@dataclass(frozen=True)
class Change:
    """How a task stands now: its row, or None if it was deleted."""

    task: str
    row: TaskRow | None


class Mark(Enum):
    """What is said without a task: that all there was has been told, or that nothing has changed for 15 s."""

    SYNCHRONISED = auto()
    HEARTBEAT = auto()


class Watch:
    """The watchers of one front end. Belongs to one event loop."""

    def __init__(self, view: CatalogView, admission: Admission, recorder: Recorder) -> None:
        self._view = view
        self._admission = admission
        self._recorder = recorder
        self._watchers = Counter[str]()
        self._full = retry.Lasting()
        # The last comparison: the two snapshots, and what it found by tenant.
        self._compared: tuple[Snapshot, Snapshot, Mapping[str, list[Change]]] | None = None

    @contextmanager
    def start(self, tenant: str = "") -> Iterator[Snapshot]:
        """Count a watcher in for the length of the block; gives the snapshot it begins with.

        Args:
            tenant: that has no more of them than are left to others; empty where nobody is asked who they are.

        Raises:
            Overloaded: there are 64, or the tenant has its part of them (`TOO_MANY_WATCHERS`).
        """
        free, own = MAX_WATCHERS - self._watchers.total(), self._watchers[tenant]
        if free <= 0 or (tenant and own >= free):
            self._recorder.inc("adamix_rejected_total", "TOO_MANY_WATCHERS")
            raise Overloaded(
                f"{MAX_WATCHERS - free} clients are watching, {own} of them yours; try again later, or list the tasks",
                reason="TOO_MANY_WATCHERS",
                retry_after_s=self._full.next(time.monotonic()),
            )
        self._watchers[tenant] += 1
        try:
            yield self._view.snapshot
        finally:
            self._watchers[tenant] -= 1
            self._watchers = +self._watchers
            if not self._watchers:
                self._compared = None  # nobody needs the old snapshots any more

    async def follow(
        self, tenant: str, snapshot: Snapshot, is_told: Callable[[str], bool]
    ) -> AsyncGenerator[Change | Mark]:
        """Every task of `snapshot` that is the tenant's, by name, and SYNCHRONISED; then each change as it happens.

        Args:
            is_told: whether the watcher is to hear of a task of this id.

        Raises:
            Unavailable: the server drains (`DRAINING`).
        """
        for row in await asyncio.to_thread(_rows_of, tenant, snapshot):
            if is_told(row.task):
                yield Change(row.task, row)
        yield Mark.SYNCHRONISED
        loop = asyncio.get_running_loop()
        closed = asyncio.ensure_future(self._admission.closed())
        try:
            said_at = loop.time()
            while True:
                newest = await self._next(snapshot, closed, said_at + HEARTBEAT_S - loop.time())
                of_tenant = self._compare(snapshot, newest).get(tenant, ())
                changes = [change for change in of_tenant if is_told(change.task)]
                for change in changes:
                    yield change
                # Silent also where others' tasks change all the time.
                if not changes and loop.time() >= said_at + HEARTBEAT_S:
                    yield Mark.HEARTBEAT
                    said_at = loop.time()
                elif changes:
                    said_at = loop.time()
                snapshot = newest
        finally:
            closed.cancel()

    async def _next(self, seen: Snapshot, closed: "asyncio.Future[None]", timeout_s: float) -> Snapshot:
        """The newest snapshot: once it is not `seen`, or after `timeout_s`. Raises as `follow` does."""
        changed = asyncio.ensure_future(self._view.changed(seen))
        try:
            waiting: set[asyncio.Future[Any]] = {changed, closed}
            await asyncio.wait(waiting, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise draining()
            return changed.result() if changed.done() else seen
        finally:
            changed.cancel()

    def _compare(self, old: Snapshot, new: Snapshot) -> Mapping[str, list[Change]]:
        """What differs, by tenant."""
        if old is new:
            return {}
        if self._compared is None or self._compared[0] is not old or self._compared[1] is not new:
            self._compared = (old, new, compare(old, new))
        return self._compared[2]


def _rows_of(tenant: str, snapshot: Snapshot) -> list[TaskRow]:
    """A tenant's tasks, by name. Looks at every task of the server: not for the event loop."""
    return sorted((row for row in snapshot.tasks.values() if row.tenant == tenant), key=attrgetter("task"))


def compare(old: Snapshot, new: Snapshot) -> Mapping[str, list[Change]]:
    """By tenant what leads from one snapshot to a later one: deletions, then tasks in the order they changed."""
    found: defaultdict[str, list[Change]] = defaultdict(list)
    for tenant, task in sorted(new.gone_since(old)):
        found[tenant].append(Change(task, None))
    changed: list[TaskRow] = []
    for name in new.touched_since(old):
        row, before = new.tasks.get(name), old.tasks.get(name)
        # Most are the very same object where every task is looked at.
        if row is not None and row is not before and (before is None or _state(before) != _state(row)):
            changed.append(row)
    for row in sorted(changed, key=lambda row: (row.update_time_us, row.tenant, row.task)):
        found[row.tenant].append(Change(row.task, row))
    return found


def _state(row: TaskRow) -> tuple[object, ...]:
    """What a client can see of a task without its versions."""
    return row.etag, row.traffic, row.unavailable_reason
