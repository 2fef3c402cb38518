"""The catalog as the data plane sees it: one immutable snapshot in memory, replaced whole after every change.

Resolving a task is two dict look-ups on the event loop, the same path whether the task is unknown, another tenant's or
one's own. The catalog itself blocks on the disk, so everything that asks it goes through a small thread pool here. A
change is over when every front end of the server sees it; who they are is not known here.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from adamix.errors import AdamixError, FailedPrecondition, Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_server.agreement import Bell, Party
from adamix_server.blobs.os_errors import store_errors
from adamix_server.catalog.rows import Snapshot, VersionRow
from adamix_server.catalog.store import Catalog
from adamix_server.frontend.availability import Availability
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.pool_threads import outcome

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 8
# A front end that says nothing is replaced sooner than that, so this is only for what nobody has thought of.
AGREEMENT_TIMEOUT_S = 30.0
REREAD_S = 0.1
# For calls to end that began before something was taken from their callers.
LAST_CALLS_S = 1.0


class CatalogView:
    """A catalog, the backbone it is seen from, and its newest snapshot.

    Belongs to one event loop. `refresh` before the first use.

    Attributes:
        availability: what speaks against its versions.
    """

    def __init__(self, catalog: Catalog, spec: BackboneSpec, agreement: Party, availability: Availability) -> None:
        self.catalog = catalog
        self.spec = spec
        self.availability = availability
        self._snapshot = Snapshot(revision=-1, tasks={})
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="catalog")
        self._draw = random.Random().random  # noqa: S311 - shares traffic; nobody gains by guessing it
        # A thread of its own: what other front ends wait for does not queue behind uploads.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._agreement = agreement
        self._bell = Bell()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def run(self, work: Callable[[], T]) -> T:
        """Run something that blocks, such as a method of the catalog, in the pool; its CPU time is the call's.

        Cancelled before its turn, it is not begun; later, this ends with it, so that nobody has work done for nothing.

        Raises:
            AdamixError: also for what the operating system refuses on the way: no room, no descriptor, a store that is
                gone.
        """
        metered = partial(_metered, partial(_translated, work), calls.find())
        return await outcome(self._pool.submit(metered))

    async def change(self, work: Callable[[], T], *, must_be_seen: bool = False) -> T:
        """Run a mutation of the catalog to its end, and return when every front end sees it.

        It is durable before that: if a front end cannot follow in time, a log line says so and no error.

        Args:
            must_be_seen: for what takes something from somebody, and can be done again: then there is an error.

        Raises:
            Unavailable: `must_be_seen`, and a front end may not see it yet (`CHANGE_UNSEEN`). It is made all the same.
        """
        result, revision, is_read = await to_the_end(self._change(work))
        if not await self._agreement.all_serve(revision, AGREEMENT_TIMEOUT_S):
            log.error("a change was answered before every front end saw it", extra={"revision": revision})
            is_read = False
        if not must_be_seen:
            return result
        if not is_read:
            raise Unavailable(
                "the change is made, and a part of the server may not know of it yet; do it again, until it succeeds",
                reason="CHANGE_UNSEEN",
                retry_after_s=REREAD_S,
            )
        # Calls that came before it are answered before it is, unless they take long.
        await self._agreement.none_uses_less(revision, LAST_CALLS_S)
        return result

    async def refresh(self) -> None:
        """Take the catalog's newest snapshot."""
        read = partial(_metered, self._read, calls.find())
        newest = await outcome(self._reader.submit(read))
        # Two refreshes may end in any order.
        if newest.revision > self._snapshot.revision:
            self._snapshot = newest
            self._agreement.serve(newest.revision)
            self._bell.ring()

    async def changed(self, since: Snapshot) -> Snapshot:
        """The newest snapshot, once it is not `since`. Steps in between may be left out."""
        await self._bell.wait_for(lambda: self._snapshot is not since)
        return self._snapshot

    def resolve(self, tenant: str, task: str, digest: str = "") -> VersionRow:
        """A version that answers a task now, each as often as its weight says; or the one with `digest`.

        Raises:
            NotFound: no such task or version, or not the tenant's.
            FailedPrecondition: nothing answers it on this backbone; the reason says why.
            InvalidAdapter: this server can never load what does (`ADAPTER_TOO_LARGE_FOR_SERVER`).
        """
        version = self._find(tenant, task, digest)
        self.availability.check(version)
        return version

    def unavailable_reason(self, tenant: str, task: str, digest: str = "", *, caller: str = "") -> str:
        """Why a task, or its version with `digest`, cannot be answered now; empty if nothing is known against it.

        Args:
            caller: the tenant that asks, if it is another one.

        Raises:
            NotFound: no such task or version, or not the tenant's.
        """
        row = self._snapshot.task(tenant, task)
        if not digest:
            return self.availability.reason_of_task(row, caller)
        version = row.version(digest)
        if version.backbone_fingerprint != self.spec.fingerprint:
            return "BACKBONE_CHANGED"
        return self.availability.reason(version, caller)

    def _find(self, tenant: str, task: str, digest: str) -> VersionRow:
        row = self._snapshot.task(tenant, task)
        if digest:
            version = row.version(digest)
            if version.backbone_fingerprint != self.spec.fingerprint:
                raise _not_for_this_backbone("version")
            return version
        if not row.live:
            if row.unavailable_reason == "BACKBONE_CHANGED":
                raise _not_for_this_backbone("task")
            raise FailedPrecondition("the task has no live version; set its traffic", reason=row.unavailable_reason)
        return row.pick(self._draw)

    def look(self) -> None:
        """Whether the store is where it was, and which of its blobs are there again. Blocks.

        Raises:
            Unavailable: it is not (`STORE_LOST`).
        """
        self.catalog.check()
        self.availability.look_again()

    def reading(self) -> AbstractContextManager[None]:
        """Keep the bytes of what a call has just resolved, while it may still need the engine to load them.

        Entered in the same turn of the event loop as `resolve`.
        """
        return self._agreement.reading()

    def close(self) -> None:
        for pool in (self._pool, self._reader):
            pool.shutdown(wait=False, cancel_futures=True)
        self.catalog.close()

    def _read(self) -> Snapshot:
        """In a thread: the newest snapshot, whose versions are looked at before anybody finds them."""
        before, newest = self._snapshot, self.catalog.snapshot()
        if newest is not before:
            self.availability.learn(newest, before)
        if before.revision < 0:
            self.availability.learn_missing(newest)
        return newest

    async def _change(self, work: Callable[[], T]) -> tuple[T, int, bool]:
        """The result, the revision that is served then, and whether that has the change in it."""
        result = await self.run(work)
        # From here on it is done. An error would make the client do it again: a rollback would go back twice.
        patience_s = AGREEMENT_TIMEOUT_S
        while True:
            try:
                await self.refresh()
            except AdamixError as error:
                if patience_s <= 0:
                    log.warning("a change was answered before this front end could read it: %s", error.message)
                    return result, self._snapshot.revision, False
                await asyncio.sleep(REREAD_S)
                patience_s -= REREAD_S
            else:
                return result, self._snapshot.revision, True


def _translated(work: Callable[[], T]) -> T:
    with store_errors():
        return work()


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; if the caller is cancelled meanwhile, only after `work` has ended.

    For steps that must not be left half-way because a client hung up.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _metered(work: Callable[[], T], call: Call | None) -> T:
    """`work`, the CPU seconds of which are those of `call`."""
    began = time.thread_time()
    try:
        return work()
    finally:
        if call is not None:
            call.work_s += time.thread_time() - began


def _not_for_this_backbone(what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the {what} has no version for this server's backbone; train and register one", reason="BACKBONE_CHANGED"
    )
