"""The composition root: a small supervisor over one engine process and one or more front-end processes.

It keeps them running (`keeper.py`), introduces them to one another, keeps the books of what the front ends agree on,
answers probes and scrapes, and drains them in order on SIGTERM or SIGINT, or when a front end passes on
that an operator wants it. It computes nothing and imports neither torch nor grpc, so it is the last to fall.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from adamix_client.addresses import is_loopback, split_address
from adamix_server.agreement import Books, Letter
from adamix_server.catalog.lock import StoreLock
from adamix_server.catalog.recovery import recover
from adamix_server.catalog.reserve import reserve
from adamix_server.channel.codec import FromChild, ToChild
from adamix_server.channel.engine_frames import Hello
from adamix_server.channel.supervisor_frames import (
    Account,
    Asks,
    Beat,
    Drain,
    DrainWanted,
    EngineDown,
    EngineMoving,
    EngineStalled,
    EngineUp,
    Health,
    Ready,
    Seen,
    StartEngine,
    StartFrontEnd,
    Stats,
)
from adamix_server.config import ServerConfig
from adamix_server.descriptors import raise_limit, room_for_connections
from adamix_server.limits.operators import MAX_PROBE_CONNECTIONS
from adamix_server.port import cannot_listen, held_port
from adamix_server.supervisor.child import Child
from adamix_server.supervisor.engine_watch import LOST_AFTER, EngineWatch, Progress
from adamix_server.supervisor.journal import Journal
from adamix_server.supervisor.keeper import Keeper
from adamix_server.supervisor.lending import Lending
from adamix_server.supervisor.operator_key import ensure_operator_key
from adamix_server.supervisor.probes import Fitness, Probes
from adamix_server.telemetry.exposition import Exposition
from adamix_server.telemetry.metrics import Recorder
from adamix_server.telemetry.page_server import Bounds, PageServer
from adamix_server.telemetry.registry import SUPERVISOR, Registry
from adamix_server.trust.check import check_files

log = logging.getLogger(__name__)

_ENGINE_ID = "0"
# As its log lines and its metrics call it.
_ENGINE = f"engine-{_ENGINE_ID}"
# A front end that says nothing for this long is stuck and is replaced.
_FRONT_END_SILENCE_S = 20.0
# The kernel allows 107 bytes for the path of a socket; `/engine-….sock` comes on top of this.
_LONGEST_RUNTIME_PATH = 80
# More than the tokenizer of any backbone takes.
_RUNTIME_BYTES = 64 << 20
_STOP_S = 5.0
# For an engine in which nothing is left that anybody waits for.
_IDLE_STOP_S = 2.0


class Addresses(NamedTuple):
    """Where a server answers, as `host:port`: over gRPC, and over HTTP; empty where it does not."""

    grpc: str
    http: str


OnServing = Callable[[Addresses, Hello], None]


class Supervisor:
    """Runs one server until it is told to stop.

    Args:
        on_serving: called with the bound addresses and the engine's Hello, once, when every front end
            answers calls.

    Attributes:
        metrics_address: `host:port` of probes and scrapes, while they are answered.
    """

    def __init__(self, config: ServerConfig, on_serving: OnServing) -> None:
        self._config = config
        self._on_serving = on_serving
        self._registry = Registry()
        self._recorder = Recorder()
        self._runtime = Path()
        self._listen = config.listen
        self._http = config.http or ""
        self._announced = False
        self._generation = 0
        self._engine_up: EngineUp | None = None
        self._engine_ready = asyncio.Event()
        self._engine_began = 0.0
        # How long the last engine that came up took for it.
        self._engine_start_s = 0.0
        self._books = Books()
        self._lending = Lending(lambda name, loans: self._front_ends[name].send(loans))
        self._fitness = Fitness()
        self._journal = Journal(config.store, config.audit_days)
        self.metrics_address = ""
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._was_told = False
        self._engine = Keeper(
            "engine",
            # The watch comes first.
            (LOST_AFTER + 1) * config.engine.stall_s,
            start=self._start_engine,
            on_frame=partial(self._take, _ENGINE),
            on_end=self._engine_ended,
            stopping=self._stop,
        )
        self._watch = EngineWatch(
            config.engine.stall_s, on_stalled=self._engine_stalled, on_moving=self._engine_moving, end=self._end_engine
        )
        self._show_stalled(False)
        names = [f"frontend-{number}" for number in range(config.front_ends)]
        self._front_ends = {name: self._front_end(name) for name in names}

    def _front_end(self, name: str) -> Keeper:
        return Keeper(
            name,
            _FRONT_END_SILENCE_S,
            start=partial(self._start_front_end, name),
            on_frame=partial(self._take, name),
            on_end=partial(self._front_end_ended, name),
            stopping=self._stop,
        )

    async def run(self) -> None:
        """Serve until `stop` or a signal, drain, and return.

        Raises:
            FailedPrecondition: the store is in use, its catalog is not the one it had, or a child cannot start (with
                the child's own sentence).
            InvalidConfig: the port is in use, or the one for metrics; a certificate or a file of keys cannot be used.
            DataLoss: the catalog is damaged.
        """
        check_files(self._config.front_end)
        with (
            StoreLock(self._config.store),
            reserve(self._config.store),
            _runtime_directory(self._config.store) as self._runtime,
            self._port(self._config.listen) as self._listen,
            self._port(self._config.http, "http") as self._http,
        ):
            recovered = recover(self._config.store, accept_catalog=self._config.accept_catalog)
            for digest in recovered.missing:
                log.error("a registered adapter is missing from the store", extra={"digest": digest})
            if "keys" in self._config.front_end.access.auth:
                ensure_operator_key(self._config.store)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
            self._journal.start()
            try:
                async with self._probes():
                    await self._supervise()
            finally:
                self._journal.close()

    def stop(self) -> None:
        """Drain and end; called again, end at once.

        A drain that an operator has asked for just goes on: whoever takes a server out of service asks first, and
        sends the signal then.
        """
        if self._was_told:
            self._kill.set()
        self._was_told = True
        self._stop.set()

    async def _supervise(self) -> None:
        keepers = [asyncio.create_task(keeper.run()) for keeper in (*self._front_ends.values(), self._engine)]
        watching = asyncio.create_task(self._watch.run())
        stop, kill = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._kill.wait())
        try:
            await asyncio.wait({*keepers, watching, stop}, return_when=asyncio.FIRST_COMPLETED)
            for running in (*keepers, watching):
                if running.done():
                    running.result()  # they end before the stop only by raising
            drain = asyncio.create_task(self._drain())
            await asyncio.wait({drain, kill}, return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            if drain.done() and not drain.cancelled():
                drain.result()
        finally:
            for task in (*keepers, watching, stop, kill):
                task.cancel()
            grace_s = 0 if self._kill.is_set() else _STOP_S
            await asyncio.gather(*(front_end.end(grace_s) for front_end in self._front_ends.values()))
            await self._engine.end(grace_s)

    async def _drain(self) -> None:
        """Front ends first: they stop submitting and wait for their answers. Then the engine has nothing left."""
        log.info("draining", extra={"delay_s": self._config.drain_delay_s, "grace_s": self._config.drain_grace_s})
        order = Drain(delay_s=self._config.drain_delay_s, grace_s=self._config.drain_grace_s)
        patience_s = self._config.drain_delay_s + self._config.drain_grace_s + _STOP_S
        began = time.monotonic()
        await asyncio.gather(*(front_end.drain(order, patience_s) for front_end in self._front_ends.values()))
        # With the front ends all that waited for an answer of the engine is gone.
        await self._engine.drain(order, max(_IDLE_STOP_S, patience_s - (time.monotonic() - began)))
        log.info("drained")

    async def _start_engine(self) -> Child:
        self._generation += 1
        self._engine_began = time.monotonic()
        start = StartEngine(
            settings=self._config.engine,
            engine_id=_ENGINE_ID,
            generation=self._generation,
            # A path of its own for every generation: what is left of the last one cannot answer.
            address=f"ipc://{self._runtime}/engine-{self._generation}.sock",
            front_ends=self._config.front_ends,
            store=self._config.store,
            tokenizer=self._tokenizer,
            log_level=self._config.log_level,
        )
        child = await Child.start("adamix_server.engine", start, self._environment())
        self._registry.began(_ENGINE, child.pid)
        return child

    async def _start_front_end(self, name: str) -> Child:
        await self._engine_ready.wait()
        start = StartFrontEnd(
            settings=self._config.front_end,
            name=name,
            listen=self._listen,
            # To whoever may see everything, and sits at this machine.
            reflection=self._config.front_end.access.asks_nobody and is_loopback(split_address(self._listen)[0]),
            shares_port=self._config.front_ends > 1,
            number=list(self._front_ends).index(name),
            front_ends=self._config.front_ends,
            http=self._http,
            metrics_address=self.metrics_address,
            store=self._config.store,
            tokenizer=self._tokenizer,
            log_level=self._config.log_level,
        )
        environment = {
            **self._environment(),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            # grpc's threads receive messages; an arena each would keep what the others have freed.
            "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2"),
            # grpc's own lines are no JSON.
            "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "ERROR"),
        }
        child = await Child.start("adamix_server.frontend", start, environment)
        self._registry.began(name, child.pid)
        if self._engine_up is not None:
            child.send(self._engine_up)
            if (stalled := self._watch.stalled) is not None:
                child.send(self._stall_of(stalled))
        return child

    def _take(self, name: str, frame: FromChild) -> None:
        """Act on what a child says."""
        match frame:
            case Stats(samples=samples):
                self._registry.apply(name, samples)
                # Of the supervisor itself, which says whatever all of them have to say.
                self._registry.apply(SUPERVISOR, self._recorder.drain())
            case Account():
                self._journal.take(frame)
            case Beat(last_step=last_step):
                self._watch.beat(last_step)
            case Seen():
                self._deliver(self._books.seen(name, frame))
            case Asks():
                self._lending.take(name, frame)
            case Ready(address=address, hello=Hello() as hello):
                log.info("engine ready", extra={"backbone": hello.spec.label, "device": hello.device})
                self._engine_up = EngineUp(address=address, hello=hello)
                self._engine_ready.set()
                self._engine_start_s = time.monotonic() - self._engine_began
                self._watch.ready()
                self._show_stalled(False)
                self._tell_front_ends(self._engine_up)
                self._announce()
            case Ready(address=address, http=http):
                # A replacement takes the same ports.
                self._listen, self._http = address, http
                self._announce()
            case Health(reasons=reasons):
                self._fitness.said(name, reasons)
            case DrainWanted():
                log.info("an operator asked for a drain", extra={"by_way_of": name})
                self._stop.set()
            case _:
                log.error("unexpected %s frame", type(frame).__name__, extra={"child": name})

    def _engine_ended(self) -> None:
        self._registry.ended(_ENGINE)
        self._engine_ready.clear()
        self._engine_up = None
        self._watch.gone()
        self._show_stalled(False)
        back_at = time.monotonic() + self._engine_start_s
        self._tell_front_ends(EngineDown(generation=self._generation, engine_id=_ENGINE_ID, back_at=back_at))

    def _engine_stalled(self, progress: Progress) -> None:
        log.error("the engine stands still", extra={"stalled_s": round(time.monotonic() - progress.last_step, 1)})
        self._show_stalled(True)
        self._tell_front_ends(self._stall_of(progress))

    def _engine_moving(self) -> None:
        log.warning("the engine goes on")
        self._show_stalled(False)
        self._tell_front_ends(EngineMoving(generation=self._generation, engine_id=_ENGINE_ID))

    async def _end_engine(self) -> None:
        log.error("the engine has stood still for too long and is replaced")
        # What waits for it is told now: a process that waits for its device may outlive its end by a while.
        self._engine_ended()
        await self._engine.replace()

    def _stall_of(self, progress: Progress) -> EngineStalled:
        return EngineStalled(
            generation=self._generation,
            engine_id=_ENGINE_ID,
            since=progress.last_step,
            back_at=progress.lost_at + self._engine_start_s,
        )

    def _show_stalled(self, is_stalled: bool) -> None:
        self._recorder.set("adamix_engine_stalled", value=is_stalled)
        self._registry.apply(SUPERVISOR, self._recorder.drain())

    def _front_end_ended(self, name: str) -> None:
        self._fitness.ended(name)
        self._registry.ended(name)
        # Only now, when it can answer nobody any more, does the agreement go on without it.
        self._deliver(self._books.left(name))
        self._lending.left(name)

    def _tell_front_ends(self, frame: ToChild) -> None:
        for front_end in self._front_ends.values():
            front_end.send(frame)

    def _deliver(self, letters: Iterable[Letter]) -> None:
        for name, frame in letters:
            self._front_ends[name].send(frame)

    def _announce(self) -> None:
        """Say that the server serves, the first time that all of it does."""
        if self._announced or self._engine_up is None:
            return
        if all(front_end.is_ready for front_end in self._front_ends.values()):
            self._announced = True
            self._on_serving(Addresses(self._listen, self._http), self._engine_up.hello)

    @contextlib.asynccontextmanager
    async def _probes(self) -> AsyncIterator[None]:
        """Answer probes and scrapes, if that is wanted. Raises InvalidConfig (`ADDRESS_IN_USE`)."""
        if (address := self._config.metrics_address) is None:
            yield
            return
        host, port = split_address(address)
        probes = Probes(self._reasons, Exposition(self._registry.collectors).page)
        pages = PageServer(probes.answer, Bounds(connections=room_for_connections(MAX_PROBE_CONNECTIONS)))
        try:
            port = pages.listen(host, port)
        except OSError:
            field = "metrics_port" if self._config.metrics_listen is None else "metrics_listen"
            raise cannot_listen(address, field) from None
        self.metrics_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        log.info("metrics", extra={"address": self.metrics_address})
        try:
            yield
        finally:
            await pages.close()

    def _reasons(self) -> list[str]:
        """Why the server does not serve now, if it does not."""
        if self._stop.is_set():
            return ["the server is draining"]
        return self._fitness.reasons(
            {name: front_end.silent_s for name, front_end in self._front_ends.items() if front_end.is_ready}
        )

    def _port(self, listen: str | None, field: str = "listen") -> contextlib.AbstractContextManager[str]:
        """One front end holds its ports itself. Without an address there is none to be held, and it is empty."""
        if listen is None or self._config.front_ends == 1:
            return contextlib.nullcontext(listen or "")
        return held_port(listen, field)

    @property
    def _tokenizer(self) -> Path:
        return self._runtime / "tokenizer.json"

    def _environment(self) -> dict[str, str]:
        """For children, before they import torch: threads set later do not bind threads started by others."""
        threads = str(self._config.engine.threads or len(os.sched_getaffinity(0)))
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
    in the store would have too long a path, or where the store's disk is full: what it holds is served all the same.
    """
    directory = store.absolute() / "run"
    shutil.rmtree(directory, ignore_errors=True)
    is_full = shutil.disk_usage(store).free < _RUNTIME_BYTES
    if is_full or len(os.fsencode(directory)) > _LONGEST_RUNTIME_PATH:
        with tempfile.TemporaryDirectory(prefix="adamix-") as other:
            yield Path(other)
        return
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def serve(config: ServerConfig, on_serving: OnServing) -> None:
    """Run a server in this process's main thread until SIGTERM or SIGINT. Raises AdamixError when it cannot start."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(config, on_serving))


async def _run(config: ServerConfig, on_serving: OnServing) -> None:
    # Children inherit it.
    raise_limit()
    await Supervisor(config, on_serving).run()
