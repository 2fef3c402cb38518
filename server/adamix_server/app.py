"""The composition root: a small supervisor over one engine process and one front-end process.

It starts them, watches them, starts them again when they die, hands the metrics of both to Prometheus, and drains them
in order on SIGTERM or SIGINT. It computes nothing and imports neither torch nor grpc, so it is the last to fall.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from adamix.errors import FailedPrecondition
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.recovery import recover
from adamix_server.config import EngineConfig, FrontEndConfig, ServerConfig, is_loopback, split_address, to_plain
from adamix_server.frames import AnyFrame, Drain, Drained, EngineDown, EngineUp, Fatal, Hello, Ready, Start, Stats
from adamix_server.process import Child
from adamix_server.telemetry.metrics import Registry

log = logging.getLogger(__name__)

_ENGINE_ID = "0"
# A child that says nothing for this long is stuck and is replaced. Before it is ready it may be loading weights.
_START_S = 900.0
_ENGINE_SILENCE_S = 120.0
_FRONT_END_SILENCE_S = 20.0
# A child that dies before it was ever ready this many times in a row will not come up by trying again.
_MAX_FAILED_STARTS = 5
_LONGEST_PAUSE_S = 30.0
# The kernel allows 107 bytes for the path of a socket; `/engine-….sock` comes on top of this.
_LONGEST_RUNTIME_PATH = 80
_STOP_S = 5.0


class Supervisor:
    """Runs one server until it is told to stop.

    Args:
        on_serving: called with the bound address (`host:port`) and the engine's Hello, once, when calls are answered.
    """

    def __init__(self, config: ServerConfig, on_serving: Callable[[str, Hello], None]) -> None:
        self._config = config
        self._on_serving = on_serving
        self._registry = Registry()
        self._runtime = Path()
        self._listen = config.listen
        self._announced = False
        self._generation = 0
        self._engine: Child | None = None
        self._front_end: Child | None = None
        self._engine_up: EngineUp | None = None
        self._engine_ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop` or a signal, drain, and return.

        Raises:
            FailedPrecondition: the store is in use, or a child cannot start (with the child's own sentence).
            DataLoss: the catalog is damaged.
        """
        with StoreLock(self._config.store), _runtime_directory(self._config.store) as self._runtime:
            recovered = recover(self._config.store)
            for digest in recovered.missing:
                log.error("a registered adapter is missing from the store", extra={"digest": digest})
            if self._config.metrics_port is not None:
                port = self._registry.serve(self._config.metrics_port)
                log.info("metrics", extra={"address": f"127.0.0.1:{port}"})
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
            await self._supervise()

    def stop(self) -> None:
        """Drain and end; called again, end at once."""
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    async def _supervise(self) -> None:
        engine = asyncio.create_task(self._keep_engine())
        front_end = asyncio.create_task(self._keep_front_end())
        stop, kill = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._kill.wait())
        try:
            await asyncio.wait({engine, front_end, stop}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in (engine, front_end):
                if keeper.done():
                    keeper.result()  # a keeper ends before the stop only by raising
            drain = asyncio.create_task(self._drain(engine, front_end))
            await asyncio.wait({drain, kill}, return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            if drain.done() and not drain.cancelled():
                drain.result()
        finally:
            for task in (engine, front_end, stop, kill):
                task.cancel()
            for child in (self._front_end, self._engine):
                if child is not None:
                    await child.stop(_STOP_S if child.is_ready and not self._kill.is_set() else 0)

    async def _drain(self, engine: "asyncio.Task[None]", front_end: "asyncio.Task[None]") -> None:
        """Front end first: it stops submitting and waits for its answers. Then the engine has nothing left."""
        log.info("draining", extra={"delay_s": self._config.drain_delay_s, "grace_s": self._config.drain_grace_s})
        order = Drain(delay_s=self._config.drain_delay_s, grace_s=self._config.drain_grace_s)
        patience_s = self._config.drain_delay_s + self._config.drain_grace_s + _STOP_S
        for is_front_end, keeper in ((True, front_end), (False, engine)):
            child = self._front_end if is_front_end else self._engine
            if child is None or not child.is_ready:
                keeper.cancel()  # it is being replaced: nothing runs in it, and nothing more shall
                continue
            child.send(order)
            await asyncio.wait({keeper}, timeout=patience_s)
        log.info("drained")

    async def _keep_engine(self) -> None:
        """Run one engine after another until the server stops."""
        was_ever_ready, failed_starts = False, 0
        while True:
            self._generation += 1
            child = self._engine = await Child.start(
                "engine", "adamix_server.engine", Start(config=to_plain(self._engine_config())), self._environment()
            )
            await self._watch(child, _ENGINE_SILENCE_S, may_give_up=not was_ever_ready)
            self._engine_ready.clear()
            self._engine_up = None
            if self._front_end is not None:
                self._front_end.send(EngineDown(generation=self._generation))
            self._engine = None
            was_ever_ready |= child.is_ready
            failed_starts = 0 if child.is_ready else failed_starts + 1
            if await self._ended(child, failed_starts, may_give_up=not was_ever_ready):
                return

    async def _keep_front_end(self) -> None:
        """Run one front end after another until the server stops."""
        was_ever_ready, failed_starts = False, 0
        while True:
            await self._engine_ready.wait()
            child = self._front_end = await Child.start(
                "front end",
                "adamix_server.frontend",
                Start(config=to_plain(self._front_end_config())),
                {
                    **self._environment(),
                    "OMP_NUM_THREADS": "1",
                    "MKL_NUM_THREADS": "1",
                    # grpc's own lines are no JSON.
                    "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "ERROR"),
                },
            )
            if self._engine_up is not None:
                child.send(self._engine_up)
            await self._watch(child, _FRONT_END_SILENCE_S, may_give_up=not was_ever_ready)
            self._front_end = None
            was_ever_ready |= child.is_ready
            failed_starts = 0 if child.is_ready else failed_starts + 1
            if await self._ended(child, failed_starts, may_give_up=not was_ever_ready):
                return

    async def _watch(self, child: Child, silence_s: float, *, may_give_up: bool) -> None:
        """Follow a child until it ends or falls silent.

        Raises:
            FailedPrecondition: the child says that it cannot start, and no child of its kind ever could. Once one
                could, what keeps its replacement from starting is taken to pass.
        """
        while True:
            try:
                frame = await asyncio.wait_for(child.receive(), silence_s if child.is_ready else _START_S)
            except TimeoutError:
                # The trace of a timeout says nothing.
                log.error("child is stuck", extra={"child": child.name, "silent_s": silence_s})  # noqa: TRY400
                return
            if frame is None or isinstance(frame, Drained):
                return
            if isinstance(frame, Fatal):
                if may_give_up:
                    raise FailedPrecondition(frame.message, reason="CANNOT_START")
                log.error("child cannot start", extra={"child": child.name, "reason": frame.message})
                return
            child.is_ready |= isinstance(frame, Ready)
            self._take(frame)

    async def _ended(self, child: Child, failed_starts: int, *, may_give_up: bool) -> bool:
        """Clear a child away; whether the server stops. Otherwise wait a little before the next one.

        Raises:
            FailedPrecondition: it never came up, and trying again did not help.
        """
        status = await child.kill()
        if self._stop.is_set():
            return True
        log.error("child ended", extra={"child": child.name, "status": status})
        if may_give_up and failed_starts >= _MAX_FAILED_STARTS:
            raise FailedPrecondition(
                f"the {child.name} process ended {failed_starts} times before it was ready (last status {status}); "
                "its own log lines above say why",
                reason="CANNOT_START",
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), min(0.1 * 2**failed_starts, _LONGEST_PAUSE_S))
        return self._stop.is_set()

    def _take(self, frame: AnyFrame) -> None:
        match frame:
            case Stats(samples=samples):
                self._registry.apply(samples)
            case Ready(address=address, hello=Hello() as hello):
                log.info("engine ready", extra={"backbone": hello.spec.label, "device": hello.device})
                self._engine_up = EngineUp(address=address, hello=hello)
                self._engine_ready.set()
                if self._front_end is not None:
                    self._front_end.send(self._engine_up)
            case Ready(address=address):
                self._listen = address  # a replacement takes the same port
                if not self._announced and self._engine_up is not None:
                    self._announced = True
                    self._on_serving(address, self._engine_up.hello)

    def _engine_config(self) -> EngineConfig:
        config = self._config
        return EngineConfig(
            engine_id=_ENGINE_ID,
            generation=self._generation,
            # A path of its own for every generation: what is left of the last one cannot answer.
            address=f"ipc://{self._runtime}/engine-{self._generation}.sock",
            backbone=config.backbone,
            tokenizer=str(self._tokenizer),
            store=str(config.store),
            device=config.device,
            dtype=config.dtype,
            max_batch_tokens=config.max_batch_tokens,
            slots=config.slots,
            arena_bytes=config.arena_bytes,
            host_cache_bytes=config.host_cache_bytes,
            max_queue_inputs=config.max_queue_inputs,
            max_queue_tokens=config.max_queue_tokens,
            log_level=config.log_level,
        )

    def _front_end_config(self) -> FrontEndConfig:
        return FrontEndConfig(
            listen=self._listen,
            store=str(self._config.store),
            tokenizer=str(self._tokenizer),
            tokenizer_threads=self._config.tokenizer_threads,
            reflection=is_loopback(split_address(self._listen)[0]),
            log_level=self._config.log_level,
        )

    @property
    def _tokenizer(self) -> Path:
        return self._runtime / "tokenizer.json"

    def _environment(self) -> dict[str, str]:
        """For children, before they import torch: threads set later do not bind threads started by others."""
        threads = str(self._config.engine_threads or len(os.sched_getaffinity(0)))
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            # A spinning pool stalls everyone it shares cores with by tens of milliseconds.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
        }


@contextlib.contextmanager
def _runtime_directory(store: Path) -> Iterator[Path]:
    """A directory for sockets and the tokenizer, private to this user, gone at the end.

    In the store, so that what a killed server left behind is removed by the next one; elsewhere only where a socket
    in the store would have too long a path.
    """
    directory = store.absolute() / "run"
    if len(os.fsencode(directory)) > _LONGEST_RUNTIME_PATH:
        with tempfile.TemporaryDirectory(prefix="adamix-") as other:
            yield Path(other)
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def serve(config: ServerConfig, on_serving: Callable[[str, Hello], None]) -> None:
    """Run a server in this process's main thread until SIGTERM or SIGINT. Raises AdamixError when it cannot start."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(config, on_serving))


async def _run(config: ServerConfig, on_serving: Callable[[str, Hello], None]) -> None:
    await Supervisor(config, on_serving).run()
