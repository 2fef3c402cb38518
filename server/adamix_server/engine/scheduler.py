"""Which requests run in the next batch of an encoder. Pure: no torch, no clock, no channel.

Batches are formed late, from whatever is ready, up to a budget of tokens: `service_classes.py` fills a batch from the
fair queues of both classes. What waits, and for what, is `request_queue.py`.
"""

from collections.abc import Callable

from adamix_server.engine.fair import Chosen
from adamix_server.engine.request import Batch
from adamix_server.engine.request_queue import RequestQueue
from adamix_server.engine.tenants import LATELY_S


class Scheduler(RequestQueue):
    """The queue of an encoder's engine, and the next batch out of it.

    Args:
        max_batch_tokens: token budget of a batch. A longer request runs alone.
    """

    @property
    def is_behind(self) -> bool:
        """Whether the last batch left interactive requests that could have run, too.

        Then it was as large as batches are now. What is left of the class `batch` alone says nothing of that.
        """
        return self._classes.interactive.is_active

    def next_batch(self, is_ready: Callable[[str], bool], now: float, tokens_per_s: float) -> Batch | None:
        """Take the next batch out of the queue; None if no request's adapter is ready.

        Args:
            is_ready: asked of adapters that requests wait for, and of those that a batch is about to need.
            now: on the clock by which requests arrived.
            tokens_per_s: measured.
        """
        self._tenants.forget(now)
        self._wake(is_ready)
        chosen = Chosen(is_ready)
        is_lately = now - self._tenants.interactive_asked <= LATELY_S
        self._classes.fill(chosen, self._budget(tokens_per_s), is_interactive_lately=is_lately)
        for request in chosen.requests:
            del self._queue[request.peer, request.row.id]
            self._tenants.went(request)
        for digest in chosen.lost:
            self._park(digest)
        return Batch.of(chosen.requests) if chosen.requests else None
