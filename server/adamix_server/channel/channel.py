"""What passes between a front end and the engine, over a local socket or inside one process.

The engine's side is synchronous (it lives in the engine's own loop), the front end's asynchronous. One frame per turn
of either loop, never one per request. Delivery is at most once: when a side dies, what was under way is lost, and
whoever waits for it is told by the supervisor. Knows frames; knows neither requests nor gRPC nor torch.
"""

import asyncio
import contextlib
import logging
import queue
import socket
from collections import deque
from typing import Protocol

import zmq

from adamix_server.channel.codec import FromEngine, NotAFrame, ToEngine, from_engine, to_engine
from adamix_server.channel.engine_frames import Control

log = logging.getLogger(__name__)

# How long a closing side tries to deliver what it has already sent.
_LINGER_MS = 1000

# As a plain number: the flags of an enum are slow to combine.
_POLLIN = int(zmq.POLLIN)

Peer = bytes


class EngineChannel(Protocol):
    """The engine's end; many front ends."""

    def poll(self, timeout_s: float) -> list[tuple[Peer, ToEngine]]:
        """All frames that have arrived; waits up to `timeout_s` for the first, or until `wake`."""

    def send(self, peer: Peer, frame: FromEngine) -> bool:
        """Send to one front end; False if it is gone for good, and nothing of it will ever be asked for again."""

    def wake(self) -> None:
        """End a `poll` that waits. The only method that other threads may call."""

    def close(self) -> None: ...


class FrontEndChannel(Protocol):
    """A front end's end."""

    async def send(self, frame: ToEngine) -> None: ...

    async def receive(self) -> FromEngine:
        """The next frame; waits for ever if the engine is gone (the supervisor says so by `EngineDown`)."""

    def close(self) -> None: ...


class SocketEngineChannel:
    """ROUTER on a local socket. Front ends are bounded by their credit, so the socket's own queues are not."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.SNDHWM, 0)
        self._router.setsockopt(zmq.RCVHWM, 0)
        self._router.setsockopt(zmq.LINGER, _LINGER_MS)
        # What cannot be delivered is said. A front end that connects again is another one here.
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.bind(address)
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._bell.fileno(), zmq.POLLIN)

    def poll(self, timeout_s: float) -> list[tuple[Peer, ToEngine]]:
        self._poller.poll(max(0, round(timeout_s * 1000)))
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        arrived: list[tuple[Peer, ToEngine]] = []
        while True:
            try:
                peer, data = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return arrived
            try:
                arrived.append((peer, to_engine.decode(data)))
            except NotAFrame as error:
                # The engine serves the others: no front end can end it by what it says.
                log.error("a front end sent what is no frame: %s", error)  # noqa: TRY400 - the trace says nothing

    def send(self, peer: Peer, frame: FromEngine) -> bool:
        try:
            self._router.send_multipart([peer, from_engine.encode(frame)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def wake(self) -> None:
        # A full pipe already holds a wake-up that nobody has read yet.
        with contextlib.suppress(BlockingIOError):
            self._ringer.send(b"\0")

    def close(self) -> None:
        self._router.close()
        self._context.term()
        self._bell.close()
        self._ringer.close()


class SocketFrontEndChannel:
    """DEALER connected to one engine. Bound to the event loop it is made in.

    Sends and receives without `zmq.asyncio`, whose futures cost several times what a frame does.
    """

    def __init__(self, address: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[bytes] = deque()
        self._something_arrived = asyncio.Event()
        self._context = zmq.Context()
        self._dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.SNDHWM, 0)
        self._dealer.setsockopt(zmq.RCVHWM, 0)
        self._dealer.setsockopt(zmq.LINGER, 0)
        self._dealer.connect(address)
        self._loop.add_reader(self._dealer.fileno(), self._take)

    async def send(self, frame: ToEngine) -> None:
        # Without a high-water mark it never has to wait.
        self._dealer.send(to_engine.encode(frame), zmq.NOBLOCK)
        # The socket says once that something has arrived, and says it to whatever call comes next: also to a send.
        self._take()

    async def receive(self) -> FromEngine:
        while not self._arrived:
            self._something_arrived.clear()
            await self._something_arrived.wait()
        return from_engine.decode(self._arrived.popleft())

    def close(self) -> None:
        if self._dealer.closed:
            return
        self._loop.remove_reader(self._dealer.fileno())
        self._dealer.close()
        self._context.term()

    def _take(self) -> None:
        # Asked first, because finding out by `zmq.Again` costs more than a frame.
        while int(self._dealer.get(zmq.EVENTS)) & _POLLIN:
            self._arrived.append(self._dealer.recv(zmq.NOBLOCK))
            self._something_arrived.set()


class InProcessEngineChannel:
    """The engine's end of `in_process_pair`: frames are handed over by reference."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[tuple[Peer, ToEngine] | None] = queue.SimpleQueue()
        self._front_ends: dict[Peer, InProcessFrontEndChannel] = {}

    def poll(self, timeout_s: float) -> list[tuple[Peer, ToEngine]]:
        arrived: list[tuple[Peer, ToEngine]] = []
        try:
            item = self._arrived.get(timeout=timeout_s) if timeout_s > 0 else self._arrived.get_nowait()
            while True:
                if item is not None:
                    arrived.append(item)
                item = self._arrived.get_nowait()
        except queue.Empty:
            return arrived

    def send(self, peer: Peer, frame: FromEngine) -> bool:
        if (front_end := self._front_ends.get(peer)) is None:
            return False
        front_end.deliver(frame)
        return True

    def wake(self) -> None:
        self._arrived.put(None)

    def close(self) -> None:
        self._front_ends.clear()

    def attach(self, peer: Peer, front_end: "InProcessFrontEndChannel") -> None:
        self._front_ends[peer] = front_end

    def put(self, peer: Peer, frame: ToEngine) -> None:
        self._arrived.put((peer, frame))


class InProcessFrontEndChannel:
    """The front end's end of `in_process_pair`. Bound to the event loop it is made in."""

    def __init__(self, engine: InProcessEngineChannel) -> None:
        self._engine = engine
        self._peer: Peer = id(self).to_bytes(8, "little")
        self._loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[FromEngine] = asyncio.Queue()
        engine.attach(self._peer, self)

    async def send(self, frame: ToEngine) -> None:
        self._engine.put(self._peer, frame)

    async def receive(self) -> FromEngine:
        return await self._frames.get()

    def close(self) -> None:
        pass

    def deliver(self, frame: FromEngine) -> None:
        """Called in the engine's thread."""
        # The loop may have closed between two steps of the engine: then nobody waits for the frame.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._frames.put_nowait, frame)


async def connect(address: str, generation: int, engine_id: str) -> SocketFrontEndChannel:
    """Connect to an engine and introduce this front end; the engine answers with `Hello` and the first `Credit`.

    Raises:
        OSError: there is no socket to be had, mostly for want of descriptors.
    """
    try:
        channel = SocketFrontEndChannel(address)
    except zmq.ZMQError as error:
        raise OSError(error.errno, str(error)) from error
    await channel.send(Control(engine_id=engine_id, generation=generation, call=0, op="hello"))
    return channel


async def in_process_pair(engine_id: str, generation: int) -> tuple[InProcessEngineChannel, InProcessFrontEndChannel]:
    """Both ends in one process, for tests, notebooks and other hosts. Must run in the front end's event loop."""
    engine = InProcessEngineChannel()
    front_end = InProcessFrontEndChannel(engine)
    await front_end.send(Control(engine_id=engine_id, generation=generation, call=0, op="hello"))
    return engine, front_end
