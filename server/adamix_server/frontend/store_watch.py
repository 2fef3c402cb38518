"""Looks once a second whether the store is where it was, and says when it is not.

While it is lost, this front end does not serve (`STORE_LOST`): no health check sends it new work. What needs no file is
answered all the same: calls for adapters that the engine has, from the snapshot in memory. What does need one is told
UNAVAILABLE `STORE_LOST`, and nothing is written. When the same files are back, all of it goes on by itself.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from adamix.errors import AdamixError
from adamix_server.blobs.os_errors import STORE_CHECK_S, store_lost
from adamix_server.frontend.readiness import Readiness

log = logging.getLogger(__name__)

# A look at a name takes microseconds; a server of files that is gone lets it wait for ever.
ANSWER_S = 5.0


class StoreWatch:
    """One background task of the front end.

    Args:
        look: what is asked each time, in a thread; raises AdamixError while the store is lost.
    """

    def __init__(self, look: Callable[[], None], readiness: Readiness) -> None:
        self._look = look
        self._readiness = readiness
        # Its own: whatever hangs in it holds up nobody else.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-watch")
        self._looking: asyncio.Future[None] | None = None
        self._is_lost = False

    async def run(self) -> None:
        """Look, and look again, until cancelled."""
        try:
            while True:
                self._say(await self._ask())
                await asyncio.sleep(STORE_CHECK_S)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _ask(self) -> AdamixError | None:
        """What is wrong with the store."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().run_in_executor(self._thread, self._look)
        await asyncio.wait({self._looking}, timeout=ANSWER_S)
        if not self._looking.done():
            # The next turn goes on waiting for this one.
            return store_lost()
        looked, self._looking = self._looking, None
        try:
            looked.result()
        except AdamixError as error:
            return error
        except Exception:
            # Of any kind: a watch that ends says nothing of a store that is lost later.
            log.exception("the store cannot be looked at")
        return None

    def _say(self, error: AdamixError | None) -> None:
        is_lost = error is not None and error.reason == "STORE_LOST"
        if is_lost != self._is_lost:
            self._is_lost = is_lost
            if is_lost:
                log.error(
                    "the store is lost: its files are not where they were; put them back as they were, or start the "
                    "server anew if they are a copy or on another disk now"
                )
            else:
                log.warning("the store is back")
        self._readiness.put("STORE_LOST", is_lost)
