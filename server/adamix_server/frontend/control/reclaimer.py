"""Removes the bytes of retired versions once nobody can need them any more.

A call that resolved a version before it was retired may still make the engine load it, in whichever front end it runs.
Why nothing is removed too early: let the retired digests be read at revision r of the catalog. Every call resolves in
the catalog as it is at one revision and holds that revision until it ends. From r on, none of those digests can be
found. So once no running call of any front end holds a revision below r, nobody can send one of them to the engine any
more; and when the engine then says that no request it has holds the digest, nobody needs the bytes. A digest that is
registered again meanwhile can be found again: the purge sees that, in its own transaction, and leaves it alone.

Every front end does this, in any order: what one has purged, the next finds purged. What cannot go now is tried again
later, and at the latest swept when the server starts again.
"""

import asyncio
import logging
from functools import partial

from adamix.errors import AdamixError
from adamix_server.agreement import Party
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.engine_link import EngineLink

log = logging.getLogger(__name__)

RETRY_S = 60.0
# One question to the engine is about so many; what it says of them is true for good.
ASKED_AT_ONCE = 1000
PAUSE_S = 0.02


class Reclaimer:
    """One background task of the front end."""

    def __init__(self, view: CatalogView, agreement: Party, link: EngineLink) -> None:
        self._view = view
        self._agreement = agreement
        self._link = link
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """Something was retired: look soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Reclaim whenever requested, and from time to time; until cancelled."""
        while True:
            try:
                async with asyncio.timeout(RETRY_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self.reclaim()
            except AdamixError as error:
                log.warning("retired bytes stay for now: %s", error.message)
            except Exception:
                # Housekeeping must not die of one bad turn: the next one tries again.
                log.exception("retired bytes stay for now")

    async def reclaim(self) -> None:
        """Purge every retired digest that is not in use.

        Raises:
            Unavailable: there is no engine to ask, or the catalog is busy.
            StoreFull: the catalog cannot be written.
        """
        revision, digests = await self._view.run(self._read_retired)
        if not digests or not await self._agreement.none_uses_less(revision, RETRY_S):
            return
        for start in range(0, len(digests), ASKED_AT_ONCE):
            some = digests[start : start + ASKED_AT_ONCE]
            answer = await self._link.control("in_use", digests=some)
            in_use = frozenset(answer if isinstance(answer, list) else some)
            for digest in some:
                if digest not in in_use:
                    await self._view.run(partial(self._view.catalog.purge, digest, unless_registered_since=revision))
                    # Data calls go first: a deleted task may leave thousands of these.
                    await asyncio.sleep(PAUSE_S)

    def _read_retired(self) -> tuple[int, tuple[str, ...]]:
        """The retired digests, and the revision at which they were exactly these."""
        while True:
            revision, digests = self._view.catalog.revision(), self._view.catalog.retired()
            if self._view.catalog.revision() == revision:
                return revision, digests
