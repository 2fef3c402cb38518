"""One front-end process: it lives by the frames of the supervisor.

Binds its port only once an engine is up and it serves the catalog that all front ends have agreed on. `EngineDown`
fails what waits; health follows `readiness.py`. `Drain` refuses new calls, lets running
ones end, and stops. What it is made of, `assembly.py` puts together.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, InvalidConfig
from adamix_server.agreement import Party
from adamix_server.channel import channel
from adamix_server.channel.codec import ToChild, Word
from adamix_server.channel.supervisor_frames import (
    Account,
    Agreed,
    Drain,
    Drained,
    DrainWanted,
    EngineDown,
    EngineMoving,
    EngineStalled,
    EngineUp,
    Fatal,
    Health,
    Loans,
    Ready,
    Refresh,
    Sample,
    StartFrontEnd,
)
from adamix_server.frontend.assembly import Given, Parts, bind, open_view, validate_in_child
from adamix_server.frontend.borrowing import Borrowing
from adamix_server.frontend.boundary.witness import Witness
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.control.registration import Validate
from adamix_server.frontend.engine_link import ENGINE_RESTARTING, ENGINE_STALLED, Connect, EngineLink
from adamix_server.frontend.entrance import OpenEntrance, open_entrance
from adamix_server.frontend.readiness import Readiness
from adamix_server.frontend.store_watch import StoreWatch
from adamix_server.frontend.tenancy import Tenancy
from adamix_server.frontend.usage import Meter
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0

# What keeps a front end from starting however often it is tried. Anything else (a catalog that is busy, a disk that
# is full) may have passed when the supervisor starts the next one.
_INCURABLE = (InvalidConfig, FailedPrecondition, DataLoss)


class Pipe(Protocol):
    """The supervisor, as `pipe.SupervisorPipe` gives it."""

    def send(self, frame: Word) -> None: ...

    def report(self, drain: Callable[[], list[Sample]]) -> None: ...

    def account(self, make: Callable[[], Account]) -> None: ...

    async def receive(self) -> ToChild | None: ...


class FrontEnd:
    """The life of one front end.

    Args:
        start: the supervisor's first frame.
        pipe: to the supervisor.
        connect: (address, generation, engine id) -> channel to an engine.
        validate: judges uploads.
        enter: opens what stands at the port.
    """

    def __init__(
        self,
        start: StartFrontEnd,
        pipe: Pipe,
        *,
        connect: Connect = channel.connect,
        validate: Validate = validate_in_child,
        enter: OpenEntrance = open_entrance,
    ) -> None:
        self._start = start
        self._pipe = pipe
        self._validate = validate
        self._enter = enter
        self._recorder = Recorder()
        self._witness, self._meter = Witness(), Meter()
        self._link = EngineLink(connect)
        self._readiness = Readiness(ENGINE_RESTARTING)
        self._agreement = Party()
        # Alone, it has all that there is of any quota.
        self._borrowing = Borrowing(start.number, start.front_ends, pipe.send) if start.front_ends > 1 else None
        # Set when the supervisor says that the catalog has moved on.
        self._stale = asyncio.Event()
        # The engine the supervisor last spoke of, and whether it still stands.
        self._engine: EngineUp | None = None
        self._down: EngineDown | None = None
        self._receiving: asyncio.Task[ToChild | None] | None = None

    async def run(self) -> int:
        """Serve until drained, or until the supervisor is gone; returns the exit status."""
        given = Given(
            start=self._start,
            link=self._link,
            readiness=self._readiness,
            agreement=self._agreement,
            borrowing=self._borrowing,
            recorder=self._recorder,
            witness=self._witness,
            meter=self._meter,
            validate=self._validate,
            enter=self._enter,
            drain=partial(self._pipe.send, DrainWanted()),
        )
        async with contextlib.AsyncExitStack() as closing:
            closing.callback(self._link.close)
            closing.callback(self._stop_receiving)
            while not self._link.is_up:
                if not await self._go_on():
                    return 0
            try:
                view = await open_view(given, closing)
                await closing.enter_async_context(
                    _running(self._keep_fresh(view), self._keep_reporting(), self._keep_shares_told(view))
                )
                while not self._agreement.is_admitted:
                    if not await self._go_on():
                        return 0
                    await view.refresh()
                parts = await bind(given, view, closing)
            except _INCURABLE as error:
                self._pipe.send(Fatal(message=error.message))
                return 1
            except AdamixError as error:
                log.error("cannot start now: %s", error.message, extra={"reason": error.reason})  # noqa: TRY400 - the trace says nothing
                return 1
            await parts.endpoint.start()
            shown = self._report_health()
            store = StoreWatch(view.look, self._readiness)
            housekeeping = parts.reclaimer.run(), parts.residency.run(), self._keep_reported(shown)
            callers = parts.endpoint.look_after_callers()
            async with _running(self._beat(), self._forget_deleted(view), store.run(), callers, *housekeeping):
                address, http = parts.endpoint.address, parts.endpoint.http_address
                self._pipe.send(Ready(address=address, http=http))
                log.info("serving", extra={"address": address, **({"http": http} if http else {})})
                await self._follow(parts)
            return 0

    async def _go_on(self) -> bool:
        """Do what the supervisor says next, before there is a port; False if this process is to end."""
        # An engine in a long step may answer only the second connection, or the third.
        is_waiting = self._engine is not None and not self._link.is_up
        try:
            frame = await self._next(HEARTBEAT_S if is_waiting else None)
        except TimeoutError:
            await self._connect()
            return True
        if isinstance(frame, Drain):
            self._pipe.send(Drained())
        return not isinstance(frame, Drain | None)

    async def _follow(self, parts: Parts) -> None:
        """Do what the supervisor says, until it says to drain or says no more."""
        while True:
            match await self._next():
                case Drain() as order:
                    await self._drain(parts, order)
                    return
                case None:
                    log.warning("the supervisor is gone")
                    await parts.endpoint.stop(0.0)
                    return

    async def _next(self, timeout_s: float | None = None) -> ToChild | None:
        """The supervisor's next frame, after doing what it asks for at any time. Raises TimeoutError."""
        frame = await self._receive(timeout_s)
        match frame:
            case EngineUp():
                self._engine = frame
                await self._connect()
            case EngineDown():
                self._forget_engine(frame)
            case EngineStalled():
                self._link.engine_stalled(frame)
                self._look_at_link()
            case EngineMoving():
                self._link.engine_moving(frame)
                self._look_at_link()
            case Refresh():
                self._stale.set()
            case Agreed():
                self._agreement.take(frame)
            case Loans() if self._borrowing is not None:
                self._borrowing.take(frame)
            case Drain() | None:
                pass
            case _:
                log.error("unexpected %s frame from the supervisor", type(frame).__name__)
        return frame

    async def _connect(self) -> None:
        """Connect to the engine the supervisor last spoke of, if it has not been called down."""
        if (engine := self._engine) is None:
            return
        try:
            await self._link.connect(engine)
        except (AdamixError, OSError) as error:
            # The heartbeat tries again.
            log.warning("no connection to the engine: %s", error)
        if self._engine is not engine and self._down is not None:
            # It was called down while the connection was made.
            self._link.engine_down(self._down)
        self._look_at_link()

    def _look_at_link(self) -> None:
        self._readiness.put(ENGINE_RESTARTING, not self._link.is_up)
        self._readiness.put(ENGINE_STALLED, self._link.is_stalled)

    def _forget_engine(self, down: EngineDown) -> None:
        if (engine := self._engine) is not None:
            hello = engine.hello
            if (hello.generation, hello.engine_id) == (down.generation, down.engine_id):
                self._engine = None
        self._down = down
        self._link.engine_down(down)
        self._look_at_link()

    async def _drain(self, parts: Parts, order: Drain) -> None:
        """End in order, but do not outlive the supervisor."""
        draining = asyncio.create_task(parts.endpoint.stop(order.grace_s, order.delay_s))
        listening = asyncio.create_task(self._listen_while_draining())
        await asyncio.wait({draining, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await draining
            return
        listening.cancel()
        if not draining.result():
            log.warning("calls were cancelled at the end of the grace period", extra={"grace_s": order.grace_s})
        self._pipe.report(self._recorder.drain)
        self._pipe.account(partial(self._account, is_last=True))
        self._pipe.send(Drained())

    async def _listen_while_draining(self) -> None:
        """Until the supervisor is gone; an engine that dies meanwhile still fails its calls."""
        while await self._next() is not None:
            pass

    async def _beat(self) -> None:
        """Every second: metrics and what is to be written down to the supervisor, and a look at the link."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._pipe.report(self._recorder.drain)
            self._pipe.account(self._account)
            if not self._link.is_up:
                self._look_at_link()
                await self._connect()

    def _account(self, *, is_last: bool = False) -> Account:
        """What is to be written down since the last one. In any thread."""
        usage, keys = self._meter.drain()
        return Account(entries=self._witness.drain(is_last=is_last), usage=usage, keys=keys)

    def _report_health(self) -> tuple[str, ...]:
        """Tell the supervisor whether this front end serves, as its callers are told; what it was told."""
        reasons = self._readiness.reasons
        self._pipe.send(Health(reasons=reasons))
        return reasons

    async def _keep_reported(self, shown: tuple[str, ...]) -> None:
        """Tell it again, whenever it changes."""
        while True:
            await self._readiness.changed(shown)
            shown = self._report_health()

    async def _keep_fresh(self, view: CatalogView) -> None:
        """Take the newest snapshot when told to; and every second, so that nothing that was missed stays missed."""
        said = ""  # A store that is lost for a day is said once, not every second.
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._stale.wait()
            self._stale.clear()
            try:
                await view.refresh()
                said = ""
            except AdamixError as error:
                if said != error.reason:
                    log.warning("the catalog cannot be read now: %s", error.message, extra={"reason": error.reason})
                said = error.reason
            except Exception:
                # The other front ends wait for this loop: it must not die of one bad turn.
                log.exception("the catalog cannot be read now")

    async def _keep_reporting(self) -> None:
        """Say what this front end serves and still uses: whenever that changes, and as a sign of life every second."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._agreement.news()
            self._pipe.send(self._agreement.seen)

    async def _forget_deleted(self, view: CatalogView) -> None:
        """End the metrics of tasks that are gone, whichever front end was told to delete them."""
        known = view.snapshot
        while True:
            newest = await view.changed(known)
            # Every task is looked at where a snapshot was left out: not on the loop.
            for tenant, task in await asyncio.to_thread(newest.gone_since, known):
                self._recorder.remove_task(tenant, task)
            known = newest

    async def _keep_shares_told(self, view: CatalogView) -> None:
        """Tell the engine what tenants are among others: first, and whenever that changes."""
        tenancy, known = Tenancy(view), view.snapshot
        shares = tenancy.uncommon()
        self._link.tell_shares(shares)
        while True:
            newest = await view.changed(known)
            if newest.access is not known.access and (now := tenancy.uncommon()) != shares:
                shares = now
                self._link.tell_shares(shares)
            known = newest

    async def _receive(self, timeout_s: float | None = None) -> ToChild | None:
        """The supervisor's next frame; None when it is gone.

        Raises:
            TimeoutError: none came in time. The next call goes on where this one stopped: a frame of which half has
                arrived is not lost.
        """
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._pipe.receive())
        await asyncio.wait({self._receiving}, timeout=timeout_s)
        if not self._receiving.done():
            raise TimeoutError
        received, self._receiving = self._receiving, None
        return received.result()

    def _stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()


@contextlib.asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these in the background until the block ends."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    for task in tasks:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    # Without its heartbeat this process is soon replaced; the log then says why.
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task failed", exc_info=error)
