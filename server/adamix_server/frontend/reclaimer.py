"""Removes the bytes of retired versions once nobody can need them any more.

A request that resolved a version before it was retired may still make the engine load it. So bytes go only when no
call of this process holds the digest and the engine does not use it. What cannot go now is tried again later, and at
the latest swept when the server starts again.
"""

import asyncio
import logging
from functools import partial

from adamix.errors import AdamixError
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.engine_link import EngineLink

log = logging.getLogger(__name__)

RETRY_S = 60.0


class Reclaimer:
    """One background task of the front end."""

    def __init__(self, view: CatalogView, link: EngineLink) -> None:
        self._view = view
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
            Unavailable: there is no engine to ask.
            StoreFull: the catalog cannot be written.
        """
        for digest in await self._view.run(self._view.catalog.retired):
            if not self._view.is_held(digest) and await self._link.control("in_use", digest) is False:
                await self._view.run(partial(self._view.catalog.purge, digest))
