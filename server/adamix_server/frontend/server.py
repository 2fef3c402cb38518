"""One front-end process: it lives by the frames of the supervisor.

Binds its port only once an engine is up. `EngineDown` turns health to NOT_SERVING and fails what waits; `EngineUp`
brings both back. `Drain` refuses new calls, lets running ones end, and stops. Knows every part of the front end; what
the parts do is theirs.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adamix.errors import AdamixError, DataLoss, FailedPrecondition, InvalidConfig
from adamix.manifest import BackboneSpec
from adamix_server import channel
from adamix_server.adapters.validation import Verdict, validate_async
from adamix_server.catalog.store import Catalog
from adamix_server.config import FrontEndConfig
from adamix_server.frames import AnyFrame, Drain, Drained, EngineDown, EngineUp, Fatal, Ready, Stats
from adamix_server.frontend.adapters import AdapterServicer, Validate
from adamix_server.frontend.admission import Admission
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.endpoint import Endpoint
from adamix_server.frontend.engine_link import Connect, EngineLink
from adamix_server.frontend.inference import InferenceServicer
from adamix_server.frontend.reclaimer import Reclaimer
from adamix_server.frontend.server_info import ServerInfoServicer
from adamix_server.frontend.tokenization import Tokenizer
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0

# What keeps a front end from starting however often it is tried. Anything else (a catalog that is busy, a disk that
# is full) may have passed when the supervisor starts the next one.
_INCURABLE = (InvalidConfig, FailedPrecondition, DataLoss)


class Pipe(Protocol):
    """The supervisor, as `process.SupervisorPipe` gives it."""

    def send(self, frame: AnyFrame) -> None: ...

    async def receive(self) -> AnyFrame | None: ...


@dataclass(frozen=True)
class _Parts:
    """What exists from the first engine on."""

    reclaimer: Reclaimer
    endpoint: Endpoint


async def validate_in_child(path: Path, spec: BackboneSpec, expected_digest: str) -> Verdict:
    """Judge an uploaded file in a process of its own. Raises InvalidAdapter."""
    return await validate_async(path, spec, expected_digest=expected_digest)


class FrontEnd:
    """The life of one front end.

    Args:
        settings: from the supervisor's `Start`.
        pipe: to the supervisor.
        connect: (address, generation) -> channel to an engine.
        validate: judges uploads.
    """

    def __init__(
        self,
        settings: FrontEndConfig,
        pipe: Pipe,
        *,
        connect: Connect = channel.connect,
        validate: Validate = validate_in_child,
    ) -> None:
        self._settings = settings
        self._pipe = pipe
        self._validate = validate
        self._recorder = Recorder()
        self._link = EngineLink(connect)
        # The engine the supervisor last spoke of, and whether it still stands.
        self._engine: EngineUp | None = None
        self._receiving: asyncio.Task[AnyFrame | None] | None = None

    async def run(self) -> int:
        """Serve until drained, or until the supervisor is gone; returns the exit status."""
        with contextlib.ExitStack() as closing:
            closing.callback(self._link.close)
            closing.callback(self._stop_receiving)
            if not await self._wait_for_engine():
                return 0
            try:
                parts = await self._open(closing)
            except _INCURABLE as error:
                await self._send(Fatal(message=error.message))
                return 1
            except AdamixError as error:
                log.error("cannot start now: %s", error.message, extra={"reason": error.reason})  # noqa: TRY400 - the trace says nothing
                return 1
            await parts.endpoint.start()
            background = [asyncio.create_task(self._beat(parts)), asyncio.create_task(parts.reclaimer.run())]
            for task in background:
                task.add_done_callback(_log_failure)
            try:
                await parts.endpoint.show_serving(self._link.is_up)
                await self._send(Ready(address=parts.endpoint.address))
                log.info("serving", extra={"address": parts.endpoint.address})
                await self._follow(parts)
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
            return 0

    async def _wait_for_engine(self) -> bool:
        """Whether there is one; else the supervisor wants this process to end."""
        while not self._link.is_up:
            try:
                # An engine in a long step may answer only the second connection, or the third.
                frame = await self._receive(None if self._engine is None else HEARTBEAT_S)
            except TimeoutError:
                await self._connect()
                continue
            match frame:
                case EngineUp() as engine:
                    self._engine = engine
                    await self._connect()
                case EngineDown(generation=generation):
                    self._forget_engine(generation)
                case Drain():
                    await self._send(Drained())
                    return False
                case _:
                    return False
        return True

    async def _open(self, closing: contextlib.ExitStack) -> _Parts:
        """Everything that needs to know the backbone, up to the bound port; what has to be closed is in `closing`."""
        if (hello := self._link.hello) is None:
            raise RuntimeError("opened before there was an engine")
        settings, spec, link, recorder = self._settings, hello.spec, self._link, self._recorder
        catalog = await asyncio.to_thread(Catalog, Path(settings.store), backbone_fingerprint=spec.fingerprint)
        view = CatalogView(catalog, spec)
        closing.callback(view.close)
        await view.refresh()
        tokenizer = await asyncio.to_thread(Tokenizer, settings.tokenizer, settings.tokenizer_threads)
        closing.callback(tokenizer.close)
        reclaimer = Reclaimer(view, link)
        endpoint = Endpoint(
            settings.listen,
            (
                InferenceServicer(view, tokenizer, link, recorder),
                AdapterServicer(view, link, self._validate, reclaimer, recorder),
                ServerInfoServicer(link),
            ),
            Admission(),
            recorder,
            with_reflection=settings.reflection,
        )
        return _Parts(reclaimer, endpoint)

    async def _follow(self, parts: _Parts) -> None:
        """Do what the supervisor says, until it says to drain or says no more."""
        while True:
            match await self._receive():
                case EngineUp() as engine:
                    self._engine = engine
                    await self._connect()
                    await parts.endpoint.show_serving(self._link.is_up)
                case EngineDown(generation=generation):
                    self._forget_engine(generation)
                    await parts.endpoint.show_serving(self._link.is_up)
                case Drain() as order:
                    await self._drain(parts, order)
                    return
                case None:
                    log.warning("the supervisor is gone")
                    await parts.endpoint.stop(0.0)
                    return
                case frame:
                    log.error("unexpected %s frame from the supervisor", type(frame).__name__)

    async def _connect(self) -> None:
        """Connect to the engine the supervisor last spoke of, if it has not been called down."""
        if (engine := self._engine) is None:
            return
        try:
            await self._link.connect(engine)
        except AdamixError as error:
            # The heartbeat tries again.
            log.warning("no connection to the engine: %s", error.message)
        if self._engine is not engine:
            self._link.engine_down(engine.hello.generation)

    def _forget_engine(self, generation: int) -> None:
        if self._engine is not None and self._engine.hello.generation == generation:
            self._engine = None
        self._link.engine_down(generation)

    async def _drain(self, parts: _Parts, order: Drain) -> None:
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
        await self._send(Stats(samples=self._recorder.drain()))
        await self._send(Drained())

    async def _listen_while_draining(self) -> None:
        """Until the supervisor is gone; an engine that dies meanwhile still fails its calls."""
        while (frame := await self._receive()) is not None:
            if isinstance(frame, EngineDown):
                self._forget_engine(frame.generation)

    async def _beat(self, parts: _Parts) -> None:
        """Every second: metrics to the supervisor, and a look at the link."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._send(Stats(samples=self._recorder.drain()))
            if not self._link.is_up:
                await parts.endpoint.show_serving(False)
                await self._connect()
                await parts.endpoint.show_serving(self._link.is_up)

    async def _receive(self, timeout_s: float | None = None) -> AnyFrame | None:
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

    async def _send(self, frame: AnyFrame) -> None:
        # A pipe that nobody reads fills up and then blocks: not on the event loop.
        await asyncio.to_thread(self._pipe.send, frame)


def _log_failure(task: asyncio.Task[None]) -> None:
    # Without its heartbeat this process is soon replaced; the log then says why.
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task failed", exc_info=error)
