"""A watch that outlives its streams: where one ends for a reason that passes, the next is compared with what was told.

The server says when it has told all there is, and that it lives in every 15 s of silence; one that has ever done so and
then is silent for three times as long is taken for dead, however alive its connection looks. Knows connections and
changes; keeps every task it has told of.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

import grpc

from adamix_client import retries
from adamix_client.connection import Connection
from adamix_client.errors import AdamixError, Code, Unavailable
from adamix_client.values import Task, TaskChange, to_task_change
from adamix_protos.v1 import adapters_pb2

SILENCE_S = 45.0
# Between two tries: twice as long each time. A stream that lived longer than the longest was a good one.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0


class WatchState:
    """What a watch has told of, and whether it can be resumed.

    Args:
        patience_s: for which a server that was lost is looked for, in one go.
    """

    def __init__(self, patience_s: float) -> None:
        # A server that never says when it has told everything leaves open what was deleted meanwhile.
        self.was_synchronised = False
        self._patience_s = patience_s
        self._told: dict[str, Task] = {}
        self._listed: set[str] | None = None
        self._lost_at: float | None = None
        self._tries = 0
        self._began = 0.0

    def begin(self) -> None:
        """A stream begins."""
        self._listed = set()
        self._began = time.monotonic()

    def read(self, message: adapters_pb2.WatchTasksResponse) -> Iterator[TaskChange]:
        """What a message of it tells that is not known."""
        if message.synchronised and self._listed is not None:
            for name in sorted(self._told.keys() - self._listed):
                del self._told[name]
                yield TaskChange(name, None)
            self._listed = None
            self.was_synchronised, self._lost_at = True, None
        elif message.HasField("task"):
            change = to_task_change(message)
            if self._listed is not None:
                self._listed.add(change.name)
            known = self._told.get(change.name)
            if change.task is None:
                self._told.pop(change.name, None)
            else:
                self._told[change.name] = change.task
            if change.task != known:
                yield change

    def pause_s(self, failure: AdamixError) -> float | None:
        """Seconds until the next stream, after one that ended so; None where the client was closed. Raises it else."""
        if failure.reason == "CLIENT_CLOSED" and self.was_synchronised:
            return None
        if not self.was_synchronised or not passes(failure):
            raise failure
        now = time.monotonic()
        self._tries = 0 if now - self._began > _LONGEST_PAUSE_S else self._tries + 1
        if self._lost_at is None:
            self._lost_at = now
        found_s = pause(self._tries, failure.retry_after_s)
        if now + found_s > self._lost_at + self._patience_s:
            raise failure
        return found_s


class Watching:
    """One watch, in a thread."""

    def __init__(self, connection: Connection, patience_s: float) -> None:
        self._connection = connection
        self._state = WatchState(patience_s)

    def changes(self) -> Generator[TaskChange, None, None]:
        """Every task once, then every difference. See `Client.watch`."""
        while True:
            self._state.begin()
            try:
                with closing(self._messages()) as messages:
                    for message in messages:
                        yield from self._state.read(message)
                failure: AdamixError = Unavailable("the server has ended the stream")
            except AdamixError as error:
                failure = error
            pause_s = self._state.pause_s(failure)
            if pause_s is None or self._connection.wait_closed(pause_s):
                return

    def _messages(self) -> Generator[adapters_pb2.WatchTasksResponse, None, None]:
        """One stream's messages; ends it, and with it the channel, where it is silent for too long."""
        with self._connection.calling() as link:
            call = link.adapters.WatchTasks(adapters_pb2.WatchTasksRequest(), metadata=link.metadata)
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
                raise silent(self._connection.address) from None
            finally:
                watchdog.end()
                self._connection.cancel(call)


def silent(address: str) -> Unavailable:
    return Unavailable(f"{address} has been silent for {SILENCE_S:g} s")


def passes(error: AdamixError) -> bool:
    """Whether a stream that ended so may be opened again with success."""
    return (
        error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
        or error.retry_after_s is not None
        or error.reason == "SLOW_READER"
    )


def pause(tries: int, advised_s: float | None) -> float:
    """Seconds to wait before the next try."""
    return retries.pause_s(tries, advised_s, first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)


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
