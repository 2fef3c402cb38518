"""The catalog as the data plane sees it: one immutable snapshot in memory, replaced whole after every change.

Resolving a task is two dict look-ups on the event loop, the same path whether the task is unknown, another tenant's or
one's own. The catalog itself blocks on the disk, so everything that asks it goes through a small thread pool here.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from adamix.errors import FailedPrecondition
from adamix.manifest import BackboneSpec
from adamix_server.catalog.rows import Snapshot, VersionRow
from adamix_server.catalog.store import Catalog

T = TypeVar("T")

_THREADS = 8


class CatalogView:
    """A catalog, the backbone it is seen from, and its newest snapshot.

    Belongs to one event loop. `refresh` before the first use.
    """

    def __init__(self, catalog: Catalog, spec: BackboneSpec) -> None:
        self.catalog = catalog
        self.spec = spec
        self._snapshot = Snapshot(revision=-1, tasks={})
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="catalog")
        self._held: Counter[str] = Counter()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def run(self, work: Callable[[], T]) -> T:
        """Run something that blocks, such as a method of the catalog, in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def change(self, work: Callable[[], T]) -> T:
        """Run a mutation of the catalog to its end, and see it here before returning."""
        return await to_the_end(self._change(work))

    async def refresh(self) -> None:
        """Take the catalog's newest snapshot."""
        newest = await self.run(self.catalog.snapshot)
        # Two refreshes may end in any order.
        if newest.revision >= self._snapshot.revision:
            self._snapshot = newest

    def resolve(self, tenant: str, task: str, digest: str = "") -> VersionRow:
        """The version that answers a task now, or the one with `digest`.

        Raises:
            NotFound: no such task or version, or not the tenant's.
            FailedPrecondition: nothing answers it on this backbone; the reason says why.
        """
        row = self._snapshot.task(tenant, task)
        if digest:
            version = row.version(digest)
            if version.backbone_fingerprint != self.spec.fingerprint:
                raise _not_for_this_backbone("version")
            return version
        live = row.live
        if not live:
            if row.unavailable_reason == "BACKBONE_CHANGED":
                raise _not_for_this_backbone("task")
            raise FailedPrecondition("the task has no live version; set its traffic", reason=row.unavailable_reason)
        return live[0]

    @contextmanager
    def hold(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep the bytes of these versions while a call that resolved them may still need the engine to load them."""
        held = list(digests)
        self._held.update(held)
        try:
            yield
        finally:
            self._held.subtract(held)
            for digest in set(held):
                if not self._held[digest]:
                    del self._held[digest]

    def is_held(self, digest: str) -> bool:
        return digest in self._held

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.catalog.close()

    async def _change(self, work: Callable[[], T]) -> T:
        result = await self.run(work)
        await self.refresh()
        return result


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


def _not_for_this_backbone(what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the {what} has no version for this server's backbone; train and register one", reason="BACKBONE_CHANGED"
    )
