"""Loading, unloading and pinning of versions, and an engine whose pins are those of the catalog.

The catalog is the truth about pins. An engine that restarts has forgotten them, and a front end that dies half-way
leaves the two at odds; so every front end compares them once a second and puts right what differs. Any number may do
that at once: whoever has told the engine something looks at the catalog afterwards, and tells it anew if that has
changed meanwhile. The last word is therefore what the catalog says. Knows no slots and no files.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from adamix.errors import AdamixError, Code, DeadlineExceeded, FailedPrecondition
from adamix_protos.v1 import adapters_pb2
from adamix_server.catalog.rows import VersionRow
from adamix_server.channel.engine_frames import Value
from adamix_server.frontend import convert
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

CHECK_S = 1.0
# A version that has waited so long for a slot is asked for again, after the others had a try.
SETTLE_TIMEOUT_S = 10.0
# After a refusal that will hardly pass by itself: too many pins for this engine, bytes that are damaged.
REFUSED_RETRY_S = 60.0
WHERE_TIMEOUT_S = 1.0
BRING_TIMEOUT_S = 10.0
_PASSING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED})
# So few that requests of a restarted engine do not queue behind all its pins.
_SETTLED_AT_ONCE = 4
# CPU seconds it may cost the engine, which computes for data calls meanwhile, to read an adapter, check and place it.
BRING_S = 0.01
BRING_S_PER_BYTE = 5e-9


@dataclass(frozen=True)
class _Refusal:
    """Why a version could not be settled; `next_try` is on CLOCK_MONOTONIC."""

    reason: str
    next_try: float


class Residency:
    """The residency of versions, as one front end asks for it. Belongs to one event loop."""

    def __init__(self, view: CatalogView, link: EngineLink, recorder: Recorder) -> None:
        self._view = view
        self._link = link
        self._recorder = recorder
        # Digests of which the engine may believe something else than the catalog, in ways `pins` does not show.
        self._doubtful: set[str] = set()
        self._in_doubt = asyncio.Event()
        self._refusals: dict[str, _Refusal] = {}
        self._generation = 0

    async def where(self, versions: Sequence[VersionRow]) -> Sequence[Value]:
        """Where the engine has each of a tenant's versions, as far as that is the tenant's doing.

        None for each if the engine does not say so within a second.
        """
        found: dict[str, Value] = {}
        # An engine that has restarted no longer knows who pinned what.
        pinned = [row.digest for row in versions if row.pinned]
        others = [row.digest for row in versions if not row.pinned]
        for tenant, digests in (("", pinned), (versions[0].tenant if versions else "", others)):
            if digests:
                found.update(zip(digests, await self._residencies(digests, tenant), strict=True))
        return [found[row.digest] for row in versions]

    async def _residencies(self, digests: Sequence[str], tenant: str) -> Sequence[Value]:
        answer: Value = None
        with contextlib.suppress(TimeoutError, AdamixError):
            async with asyncio.timeout(WHERE_TIMEOUT_S):
                answer = await self._link.control("residencies", digests=digests, tenant=tenant)
        return answer if isinstance(answer, list) and len(answer) == len(digests) else [None] * len(digests)

    async def bring(self, tenant: str, digest: str, num_bytes: int) -> None:
        """Bring a tenant's version to host memory before requests resolve to it, so that the first one does not wait.

        Without an engine, or with a slow one, that first request loads it. Any other failure of the load is the
        caller's answer, and the version that is live stays live.
        """
        try:
            async with asyncio.timeout(BRING_TIMEOUT_S):
                await self._bring("load", digest, num_bytes, tenant)
        except TimeoutError:
            log.warning("a version becomes live before it is loaded", extra={"digest": digest})
        except AdamixError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            log.warning("a version becomes live while there is no engine", extra={"digest": digest})

    async def load(self, tenant: str, task: str, digest: str) -> adapters_pb2.Version:
        """Bring a version into a slot if one can be had for nothing, else to host memory; it is run again.

        What ends is the quarantine of its own tenant, and of those that the task is lent to.

        Raises:
            NotFound, FailedPrecondition: as `CatalogView.resolve`.
            AdamixError: the engine cannot load it, or there is none.
        """
        version = self._view.resolve(tenant, task, digest)
        with self._view.reading():
            manifest_json = await self._manifest(tenant, task, digest)
            residency = await self._bring("activate", digest, version.num_bytes, tenant)
            lent_to = {to for owner, lent, to in self._view.snapshot.access.grants if (owner, lent) == (tenant, task)}
            for concerned in self._view.availability.quarantined_for({tenant, *lent_to}, digest):
                await self._link.control("lift", digest, tenant=concerned)
        return self._to_version(version, manifest_json, residency)

    async def unload(self, tenant: str, task: str, digest: str) -> adapters_pb2.Version:
        """Take a version out of its slot and out of host memory, until somebody asks for it.

        Its bytes stay there while a task of another tenant needs them, too. That is the other's matter: the answer is
        the same.

        Raises:
            NotFound: no such version.
            FailedPrecondition: the tenant has pinned it (`VERSION_PINNED`), or a request of it holds it
                (`VERSION_IN_USE`); or as `CatalogView.resolve`.
            Unavailable: there is no engine.
        """
        version = self._view.resolve(tenant, task, digest)
        manifest_json = await self._manifest(tenant, task, digest)
        rows = await self._with_the_same_bytes(digest)
        if any(row.pinned and row.tenant == tenant for row in rows):
            # Also where an engine that has just started does not know it yet.
            raise FailedPrecondition(
                "the version is pinned, here or by another task with the same bytes; unpin it first",
                reason="VERSION_PINNED",
            )
        is_kept = any((row.live or row.pinned) and row.tenant != tenant for row in rows)
        residency = await self._link.control("unload", digest, tenant=tenant, is_kept=is_kept)
        return self._to_version(version, manifest_json, residency)

    async def pin(self, tenant: str, task: str, digest: str) -> adapters_pb2.Version:
        """Bring a version into a slot and pin it there until `unpin`, over every restart.

        Raises:
            NotFound, FailedPrecondition: as `CatalogView.resolve`.
            QuotaExceeded: the tenant has pinned as many as it may (`QUOTA_PINNED_VERSIONS`).
            Overloaded: half of the slots or of the arena are pinned already (`TOO_MANY_PINNED`).
            Aborted: it was unpinned while it waited for its slot.
            AdamixError: the engine cannot load it, or there is none. As after every error, nothing is pinned.
        """
        version = self._view.resolve(tenant, task, digest)
        with self._view.reading():
            manifest_json = await self._manifest(tenant, task, digest)
            if not version.pinned:
                # The catalog decides, in its transaction. But a slot is taken before that, perhaps from others.
                await self._view.run(partial(self._view.catalog.check_pin, tenant))
            with self._doubted_on_error(digest):
                await self._pin_in_engine(tenant, digest, version.num_bytes)
                change = partial(self._view.catalog.set_pinned, tenant, task, digest, True, by=calls.actor())
                version = await self._view.change(change)
        return self._to_version(version, manifest_json, await self._settle_soon(digest))

    async def unpin(self, tenant: str, task: str, digest: str) -> adapters_pb2.Version:
        """Let a version be evicted again. One that is not pinned stays so.

        Raises:
            NotFound: no such version.
        """
        manifest_json = await self._manifest(tenant, task, digest)
        change = partial(self._view.catalog.set_pinned, tenant, task, digest, False, by=calls.actor())
        version = await self._view.change(change)
        await self._settle_soon(digest)
        (residency,) = await self.where([version])
        return self._to_version(version, manifest_json, residency)

    def _to_version(self, version: VersionRow, manifest_json: str, residency: Value) -> adapters_pb2.Version:
        reason = self._view.availability.quarantine_reason(version)
        return convert.to_version(version, manifest_json, residency, reason)

    async def _bring(
        self, op: Literal["load", "activate", "pin"], digest: str, num_bytes: int = 0, tenant: str = ""
    ) -> Value:
        """Ask the engine for something that loads an adapter, and remember how that went. Raises AdamixError.

        It is at the expense of the call that wants it: no more than it took, which is next to nothing where the adapter
        is there already.
        """
        began = time.monotonic()
        try:
            where = await self._link.control(op, digest, tenant=tenant)
        except AdamixError as error:
            self._view.availability.failed(digest, error)
            raise
        finally:
            if (call := calls.find()) is not None:
                call.work_s += min(BRING_S + num_bytes * BRING_S_PER_BYTE, time.monotonic() - began)
        self._view.availability.loaded(digest)
        return where

    async def _with_the_same_bytes(self, digest: str) -> list[VersionRow]:
        """The versions with these bytes, of all tenants: for what is decided by no one tenant's rows alone."""
        names = await self._view.run(partial(self._view.catalog.tasks_with, digest))
        rows = filter(None, map(self._view.snapshot.tasks.get, names))
        return [version for row in rows for version in row.ready if version.digest == digest]

    async def _manifest(self, tenant: str, task: str, digest: str) -> str:
        """Of a version, as JSON; no snapshot has it. Raises NotFound."""
        record = await self._view.run(partial(self._view.catalog.get_version, tenant, task, digest))
        return record.manifest_json

    async def run(self) -> None:
        """Keep the engine's pins what the catalog says; until cancelled."""
        said = ""  # Once, not every second.
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._in_doubt.wait()
            self._in_doubt.clear()
            try:
                await self._check()
                said = ""
            except AdamixError as error:
                if said != error.reason:
                    log.warning("pins cannot be compared now: %s", error.message, extra={"reason": error.reason})
                said = error.reason
            except Exception:
                # The pins of a restarted engine depend on this loop: it must not die of one bad turn.
                log.exception("pins cannot be compared now")

    async def _pin_in_engine(self, tenant: str, digest: str, num_bytes: int) -> None:
        try:
            await self._bring("pin", digest, num_bytes, tenant)
        except AdamixError as error:
            if error.reason != "TOO_MANY_PINNED":
                raise
        else:
            return
        # Some of them may be of versions that were deleted a moment ago.
        await self._check()
        try:
            await self._bring("pin", digest, num_bytes, tenant)
        except AdamixError as error:
            self._recorder.inc("adamix_rejected_total", error.reason)
            raise

    async def _check(self) -> None:
        """Compare engine and catalog, and put right what differs."""
        if (hello := self._link.hello) is None or not self._link.is_up:
            return
        if hello.generation != self._generation:
            self._generation = hello.generation
            self._refusals.clear()
        pinned = await self._view.run(self._view.catalog.pinned)
        answer = await self._link.control("pins")
        pinned_there = frozenset(answer if isinstance(answer, list) else ())
        differing = (*(digest for digest in pinned if digest not in pinned_there), *(pinned_there - frozenset(pinned)))
        concerned = list(dict.fromkeys([*self._doubtful, *differing]))
        self._refusals = {digest: self._refusals[digest] for digest in concerned if digest in self._refusals}
        limit = asyncio.Semaphore(_SETTLED_AT_ONCE)
        await asyncio.gather(*(self._put_right(digest, limit) for digest in concerned if self._is_due(digest)))

    def _is_due(self, digest: str) -> bool:
        refusal = self._refusals.get(digest)
        return digest in self._doubtful or refusal is None or refusal.next_try <= time.monotonic()

    async def _put_right(self, digest: str, limit: asyncio.Semaphore) -> None:
        """Settle one adapter, or say why not and leave it to a later turn."""
        async with limit:
            self._doubtful.discard(digest)
            try:
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    await self._settle(digest)
            except (AdamixError, TimeoutError) as problem:
                error = problem if isinstance(problem, AdamixError) else DeadlineExceeded("it waits for a slot")
                self._postpone(digest, error)
            except BaseException:  # nothing is handled: what was taken up is put back, and it goes on
                self._doubtful.add(digest)
                raise
            else:
                if self._refusals.pop(digest, None) is not None:
                    log.info("a version is pinned as it should be again", extra={"digest": digest})

    def _postpone(self, digest: str, error: AdamixError) -> None:
        if passes := error.code in _PASSING:
            self._doubtful.add(digest)
        known = self._refusals.get(digest)
        if known is None or known.reason != error.reason:
            log.warning(
                "a version is not pinned as it should be: %s",
                error.message,
                extra={"digest": digest, "reason": error.reason},
            )
        self._refusals[digest] = _Refusal(error.reason, time.monotonic() + (0.0 if passes else REFUSED_RETRY_S))

    async def _settle(self, digest: str) -> Value:
        """Make the engine do with one adapter what the catalog says, whoever changes either meanwhile.

        Returns:
            where the adapter is.

        Raises:
            AdamixError: the engine cannot, or there is none; or the catalog cannot be read.
        """
        while True:
            is_pinned = await self._is_pinned(digest)
            residency = await (self._bring("pin", digest) if is_pinned else self._link.control("unpin", digest))
            if await self._is_pinned(digest) == is_pinned:
                return residency

    async def _settle_soon(self, digest: str) -> Value:
        """Settle an adapter now if that can be done; else the background does, for the catalog has the change."""
        try:
            with self._doubted_on_error(digest):
                return await self._settle(digest)
        except AdamixError as error:
            log.warning("a pin takes effect later: %s", error.message, extra={"digest": digest, "reason": error.reason})
            return None

    async def _is_pinned(self, digest: str) -> bool:
        return digest in await self._view.run(self._view.catalog.pinned)

    @contextlib.contextmanager
    def _doubted_on_error(self, digest: str) -> Iterator[None]:
        """If the block fails, or its caller is gone: let the background settle what it has begun."""
        try:
            yield
        except BaseException:  # nothing is handled: what was begun is noted, and it goes on
            self._doubtful.add(digest)
            self._in_doubt.set()
            raise
