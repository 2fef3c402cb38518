"""A watch that outlives its streams: where one ends for a reason that passes, the next is compared with what was told.

The server says when it has told all there is, and that it lives in every 15 s of silence; one that has ever done so and
then is silent for three times as long is taken for dead, however alive its connection looks. Knows connections and
changes; keeps every task it has told of.
"""

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

import grpc

from adamix_client.connection import Connection
from adamix_client.errors import AdamixError, Code, Unavailable
from adamix_client.values import Task, TaskChange, to_task_change
from adamix_protos.v1 import adapters_pb2

SILENCE_S = 45.0
# Between two tries: twice as long each time. A stream that lived longer than the longest was a good one.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0


class Watching:
    """One watch: what it has told of, and whether it can be resumed.

    Args:
        patience_s: for which a server that was lost is looked for, in one go.
    """

    def __init__(self, connection: Connection, patience_s: float) -> None:
        self._connection = connection
        self._patience_s = patience_s
        self._told: dict[str, Task] = {}
        # A server that never says when it has told everything leaves open what was deleted meanwhile.
        self._was_synchronised = False
        self._lost_at: float | None = None

    def changes(self) -> Generator[TaskChange, None, None]:
        """Every task once, then every difference. See `Client.watch_tasks`."""
        tries = 0
        while True:
            began = time.monotonic()
            try:
                yield from self._one_stream()
                failure: AdamixError = Unavailable("the server has ended the stream")
            except AdamixError as error:
                failure = error
            if failure.reason == "CLIENT_CLOSED" and self._was_synchronised:
                return
            if not self._was_synchronised or not passes(failure):
                raise failure
            now = time.monotonic()
            tries = 0 if now - began > _LONGEST_PAUSE_S else tries + 1
            if self._lost_at is None:
                self._lost_at = now
            pause_s = pause(tries, failure.retry_after_s)
            if now + pause_s > self._lost_at + self._patience_s:
                raise failure
            if self._connection.wait_closed(pause_s):
                return

    def _one_stream(self) -> Generator[TaskChange, None, None]:
        """What the next stream tells that is not known."""
        listed: set[str] | None = set()
        with closing(self._messages()) as messages:
            for message in messages:
                if message.synchronised and listed is not None:
                    for name in sorted(self._told.keys() - listed):
                        del self._told[name]
                        yield TaskChange(name, None)
                    listed = None
                    self._was_synchronised, self._lost_at = True, None
                elif message.HasField("task"):
                    change = to_task_change(message)
                    if listed is not None:
                        listed.add(change.name)
                    known = self._told.get(change.name)
                    if change.task is None:
                        self._told.pop(change.name, None)
                    else:
                        self._told[change.name] = change.task
                    if change.task != known:
                        yield change

    def _messages(self) -> Generator[adapters_pb2.WatchTasksResponse, None, None]:
        """One stream's messages; ends it, and with it the channel, where it is silent for too long."""
        with self._connection.calling() as link:
            call = link.adapters.WatchTasks(adapters_pb2.WatchTasksRequest())
            watchdog = _Watchdog(SILENCE_S, call.cancel)
            try:
                while True:
                    with watchdog.waiting():
                        message = next(call, None)
                    if message is None:
                        return
                    link.heard()
                    if message.heartbeat or message.synchronised:
                        watchdog.start()
                    yield message
                    self._connection.check_usable()
            except grpc.RpcError:
                if not watchdog.has_fired:
                    raise
                self._connection.renew(link)
                raise Unavailable(f"{self._connection.address} has been silent for {SILENCE_S:g} s") from None
            finally:
                watchdog.end()
                self._connection.cancel(call)


def passes(error: AdamixError) -> bool:
    """Whether a stream that ended so may be opened again with success."""
    return (
        error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
        or error.retry_after_s is not None
        or error.reason == "SLOW_READER"
    )


def pause(tries: int, advised_s: float | None) -> float:
    """Seconds to wait before the next try: of growing length, never the same for two clients, nor less than advised."""
    longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(tries, 10))
    return max(longest_s * random.uniform(0.5, 1.0), advised_s or 0.0)  # noqa: S311 - spreads clients, guards nothing


class _Watchdog:
    """Calls `on_silence` once if a wait lasts longer than `limit_s`; not before `start`."""

    def __init__(self, limit_s: float, on_silence: Callable[[], object]) -> None:
        self.has_fired = False
        self._limit_s = limit_s
        self._on_silence = on_silence
        self._waiting_since: float | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may take too long."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def end(self) -> None:
        self._over.set()

    def _run(self) -> None:
        left_s = self._limit_s
        while not self._over.wait(left_s):
            since = self._waiting_since
            left_s = self._limit_s if since is None else since + self._limit_s - time.monotonic()
            if left_s <= 0:
                self.has_fired = True
                self._on_silence()
                return
