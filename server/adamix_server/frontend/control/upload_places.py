"""Who may upload: places, of which there are few, and how slow somebody may be who has one or waits for one.

An upload waits until 64 KiB of it have come, or all of it, and has no more than those in memory; then it takes a place,
and with it a temporary file and its turn with the validator. Whoever sends less than the minimum rate is ended, and at
once where others need the place. Only the time counts in which the client is waited for: a server that is slow itself
ends nobody for it.

Knows neither gRPC nor what is uploaded; `Meter` (pure) knows no clock.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from adamix.errors import DeadlineExceeded, Overloaded
from adamix_server import retry
from adamix_server.limits.control import (
    MAX_CHUNK_BYTES,
    MAX_UPLOADS,
    MAX_WAITING_UPLOADS,
    MIN_UPLOAD_BYTES_PER_S,
    UPLOAD_GRACE_S,
    UPLOAD_IDLE_S,
)
from adamix_server.telemetry.metrics import Recorder

T = TypeVar("T")

# The rate is that of so many seconds.
WINDOW_S = 10.0
CHECK_S = 0.5
# Shorter than that nothing is measured: whoever has just come is not slow yet.
_MIN_WINDOW_S = 1.0
# Chunks that come within this are counted as one.
_TOGETHER_S = 0.1


class Meter:
    """How fast the bytes of one upload come. Pure; `now` are the seconds for which its client has been waited for.

    A message is seen when it is complete. So one as large as the last one may be on its way, for as long as it needs at
    the minimum rate; before the first chunk, the largest.
    """

    def __init__(self) -> None:
        self._arrivals: deque[tuple[float, int]] = deque()
        self._last_at = 0.0
        self._on_its_way = MAX_CHUNK_BYTES

    def arrived(self, now: float, num_bytes: int) -> None:
        """A chunk has come."""
        if self._arrivals and now - self._arrivals[-1][0] < _TOGETHER_S:
            then, before = self._arrivals.pop()
            self._arrivals.append((then, before + num_bytes))
        else:
            self._arrivals.append((now, num_bytes))
        self._last_at, self._on_its_way = now, num_bytes

    def rate(self, now: float) -> float:
        """Bytes a second of the last ten seconds, or of all there were, with what may be on its way."""
        while self._arrivals and self._arrivals[0][0] <= now - WINDOW_S:
            self._arrivals.popleft()
        came = sum(num_bytes for _, num_bytes in self._arrivals)
        if now - self._last_at <= self._on_its_way / MIN_UPLOAD_BYTES_PER_S:
            came += self._on_its_way
        return came / min(max(now, _MIN_WINDOW_S), WINDOW_S)

    def is_too_slow(self, now: float) -> bool:
        """Whether it is to end, whoever else wants its place."""
        return now > UPLOAD_GRACE_S and self.rate(now) < MIN_UPLOAD_BYTES_PER_S


class Upload:
    """One upload, from its call on.

    Attributes:
        connection: that it comes over.
        tenant: whose it is; empty where nobody is asked who they are.
        meter: of its chunks.
        must_send: whether chunks are to come: known once its header has.
        placed: when it took its place, on the clock of its `UploadPlaces`; None before.
    """

    def __init__(self, places: "UploadPlaces", connection: str, tenant: str, clock: Callable[[], float]) -> None:
        self.connection = connection
        self.tenant = tenant
        self.meter = Meter()
        self.must_send = False
        self.placed: float | None = None
        self._places = places
        self._ends_at = asyncio.get_running_loop().time() + places.max_s
        self._clock = clock
        self._waited_s = 0.0
        self._waiting_since: float | None = None
        self._scope: asyncio.Timeout | None = None

    @property
    def now(self) -> float:
        """Seconds for which its client has been waited for."""
        since = self._waiting_since
        return self._waited_s + (0.0 if since is None else self._clock() - since)

    @property
    def is_receiving(self) -> bool:
        return self._scope is not None

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """Receive its messages in such blocks.

        Raises:
            DeadlineExceeded: they come too slowly (`UPLOAD_TOO_SLOW`).
        """
        try:
            async with asyncio.timeout_at(self._ends_at) as self._scope:
                yield
        except TimeoutError:
            raise DeadlineExceeded(
                f"the upload came too slowly: at least {MIN_UPLOAD_BYTES_PER_S >> 10} KiB a second are needed, and all "
                f"of it within {self._places.max_s:g} s",
                reason="UPLOAD_TOO_SLOW",
            ) from None
        finally:
            self._scope = None

    def restart(self) -> None:
        """Count the time for all of it from now on: until now it was the server that waited."""
        self._ends_at = asyncio.get_running_loop().time() + self._places.max_s

    async def wait_for(self, message: Awaitable[T]) -> T:
        """What the client sends next. Raises DeadlineExceeded if nothing comes (`UPLOAD_IDLE`)."""
        self._waiting_since = self._clock()
        try:
            async with asyncio.timeout(UPLOAD_IDLE_S):
                return await message
        except TimeoutError:
            raise DeadlineExceeded(f"nothing was sent for {UPLOAD_IDLE_S:g} s", reason="UPLOAD_IDLE") from None
        finally:
            self._waited_s, self._waiting_since = self.now, None

    def arrived(self, num_bytes: int) -> None:
        """A chunk has come."""
        self.meter.arrived(self.now, num_bytes)

    def take_place(self) -> None:
        """Go on with a place of its own; if need be the slowest of the others loses its.

        Raises:
            Overloaded: all are taken by uploads that are fast enough, or complete (`TOO_MANY_UPLOADS`).
        """
        self._places.give(self)

    def end(self) -> None:
        """Let `receiving` raise. It is no longer counted."""
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())


class UploadPlaces:
    """The uploads of one front end. Belongs to one event loop.

    Args:
        max_s: for receiving all of one.
        clock: monotonic seconds.
    """

    def __init__(self, max_s: float, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_s = max_s
        self._recorder = recorder
        self._clock = clock
        self._waiting: set[Upload] = set()
        self._placed: set[Upload] = set()
        self._timer: asyncio.TimerHandle | None = None
        # Smoothed: how long an upload keeps its place. None until one has ended.
        self._typical_s: float | None = None

    @contextmanager
    def upload(self, connection: str, tenant: str = "") -> Iterator[Upload]:
        """Count an upload in for the length of the block; it waits for a place until `Upload.take_place`.

        A tenant has no more of the places, and of the room to wait for one, than are left to others.

        Args:
            tenant: whose it is; empty where nobody is asked who they are.

        Raises:
            Overloaded: too many wait already (`TOO_MANY_UPLOADS`).
        """
        of_connection = [upload for upload in self._waiting if upload.connection == connection]
        if len(of_connection) >= MAX_WAITING_UPLOADS // 2 and not self._end_slowest(of_connection):
            raise self._too_many()
        if len(self._waiting) >= MAX_WAITING_UPLOADS and not self._end_slowest(self._waiting):
            raise self._too_many()
        self._check_part(tenant, self._waiting, MAX_WAITING_UPLOADS)
        upload = Upload(self, connection, tenant, self._clock)
        self._waiting.add(upload)
        self._watch()
        try:
            yield upload
        finally:
            self._waiting.discard(upload)
            self._placed.discard(upload)
            if upload.placed is not None:
                kept_s = self._clock() - upload.placed
                before = kept_s if self._typical_s is None else self._typical_s
                self._typical_s = before + 0.1 * (kept_s - before)

    def give(self, upload: Upload) -> None:
        """See `Upload.take_place`."""
        if len(self._placed) >= MAX_UPLOADS and not self._end_slowest(self._placed):
            raise self._too_many()
        self._check_part(upload.tenant, self._placed, MAX_UPLOADS)
        self._waiting.discard(upload)
        self._placed.add(upload)
        upload.placed = self._clock()

    def _check_part(self, tenant: str, uploads: set[Upload], most: int) -> None:
        """Raises Overloaded if a tenant has its part of these, and none of its own is to end."""
        own = [upload for upload in uploads if upload.tenant == tenant]
        if tenant and len(own) >= most - len(uploads) and not self._end_slowest(own):
            raise self._too_many()

    def _end_slowest(self, uploads: "set[Upload] | list[Upload]") -> bool:
        """End the slowest of those that are slower than the minimum rate; whether there was one."""
        rates = {upload: upload.meter.rate(upload.now) for upload in uploads if upload.is_receiving}
        slowest = min(rates, key=lambda upload: rates[upload], default=None)
        if slowest is None or rates[slowest] >= MIN_UPLOAD_BYTES_PER_S:
            return False
        self._end(slowest)
        return True

    def _end(self, upload: Upload) -> None:
        self._recorder.inc("adamix_rejected_total", "UPLOAD_TOO_SLOW")
        self._waiting.discard(upload)
        self._placed.discard(upload)
        upload.end()

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    def _check(self) -> None:
        self._timer = None
        for upload in [*self._waiting, *self._placed]:
            if upload.is_receiving and upload.must_send and upload.meter.is_too_slow(upload.now):
                self._end(upload)
        if self._waiting or self._placed:
            self._watch()

    def _too_many(self) -> Overloaded:
        self._recorder.inc("adamix_rejected_total", "TOO_MANY_UPLOADS")
        return Overloaded(
            f"{len(self._placed)} uploads are running, and {len(self._waiting)} are about to; try again later",
            reason="TOO_MANY_UPLOADS",
            retry_after_s=self._retry_s(),
        )

    def _retry_s(self) -> float:
        """Until the first place is free: nobody says how long an upload is, so what has taken long will take long."""
        return retry.within(min(map(self._rest_s, self._placed), default=0.0))

    def _rest_s(self, upload: Upload) -> float:
        age_s = 0.0 if upload.placed is None else self._clock() - upload.placed
        return age_s / 2 if self._typical_s is None else max(self._typical_s - age_s, age_s / 4)
