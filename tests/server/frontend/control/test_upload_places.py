"""Places of uploads: whose bytes come too slowly, who loses a place to whom, and who is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import AdamixError, DeadlineExceeded, Overloaded
from adamix_protos.v1 import adapters_pb2 as pb
from adamix_server.frontend.control import upload_places
from adamix_server.frontend.control.upload_places import WINDOW_S, Meter, Upload, UploadPlaces
from adamix_server.limits.control import (
    MAX_CHUNK_BYTES,
    MAX_UPLOADS,
    MAX_WAITING_UPLOAD_BYTES,
    MAX_WAITING_UPLOADS,
    MIN_UPLOAD_BYTES_PER_S,
    UPLOAD_GRACE_S,
)
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.harness import StartServing
from adamix_testing.refusals import refusal

# Seconds between two chunks, and the bytes of each.
Rhythm = tuple[float, int]
rhythms = st.tuples(st.floats(0.2, 20.0), st.integers(1, MAX_CHUNK_BYTES))


def ends_at(rhythm: Rhythm, seconds: float = 90.0) -> float | None:
    """When an upload of this rhythm is found too slow; None if it is not."""
    meter, (pause_s, num_bytes) = Meter(), rhythm
    next_s, now = pause_s, 0.0
    while now < seconds:
        now += 0.5
        while next_s <= now:
            meter.arrived(next_s, num_bytes)
            next_s += pause_s
        if meter.is_too_slow(now):
            return now
    return None


@given(rhythms)
def test_nobody_is_too_slow_within_the_grace(rhythm: Rhythm) -> None:
    end = ends_at(rhythm)
    assert end is None or end > UPLOAD_GRACE_S


@given(rhythms)
def test_who_sends_fast_enough_is_never_ended_and_who_is_far_too_slow_soon_is(rhythm: Rhythm) -> None:
    pause_s, num_bytes = rhythm
    rate = num_bytes / pause_s
    if rate >= 1.1 * MIN_UPLOAD_BYTES_PER_S:
        assert ends_at(rhythm) is None
    if rate <= 0.4 * MIN_UPLOAD_BYTES_PER_S:
        # No chunk needs longer than the largest at this rate; then it is seen within the window.
        end = ends_at(rhythm)
        assert end is not None
        assert end <= UPLOAD_GRACE_S + WINDOW_S + MAX_CHUNK_BYTES / MIN_UPLOAD_BYTES_PER_S


def test_the_minimum_rate_is_met_exactly() -> None:
    for num_bytes, is_too_slow in ((MIN_UPLOAD_BYTES_PER_S, False), (MIN_UPLOAD_BYTES_PER_S - 1, True)):
        meter, found = Meter(), False
        for second in range(1, 31):
            found |= meter.is_too_slow(second - 1e-6)
            meter.arrived(second, num_bytes)
        assert found is is_too_slow


@pytest.mark.parametrize("num_bytes", [1, 1000, MAX_CHUNK_BYTES])
def test_one_that_stands_still_is_too_slow_when_a_chunk_would_have_come(num_bytes: int) -> None:
    meter = Meter()
    for second in range(60):
        meter.arrived(float(second), MIN_UPLOAD_BYTES_PER_S)
    meter.arrived(60.0, num_bytes)
    last_s = max(num_bytes / MIN_UPLOAD_BYTES_PER_S, WINDOW_S)
    assert meter.is_too_slow(60.0 + last_s + 0.5)


class Scene:
    """Places whose clock the test moves, and uploads that wait for their clients."""

    def __init__(self) -> None:
        self.now = 0.0
        self.places = UploadPlaces(600.0, Recorder(), lambda: self.now)
        self.uploads: list[tuple[Upload, asyncio.Task[None]]] = []

    async def start(
        self, connection: str, num_bytes: int, *, with_place: bool = True, tenant: str = ""
    ) -> AdamixError | None:
        """Begin an upload that sends so much and then nothing; what it is refused with."""
        started: asyncio.Future[Upload] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                with self.places.upload(connection, tenant) as upload:
                    upload.must_send = True
                    async with upload.receiving():
                        upload.arrived(num_bytes)
                        if with_place:
                            upload.take_place()
                        started.set_result(upload)
                        await upload.wait_for(asyncio.Event().wait())
            except AdamixError as error:
                if started.done():
                    raise
                started.set_exception(error)

        task = asyncio.create_task(run())
        try:
            self.uploads.append((await started, task))
        except AdamixError as error:
            return error
        await asyncio.sleep(0)
        return None

    async def ended(self) -> list[int]:
        """The numbers of those that were ended for being too slow."""
        for _ in range(5):
            await asyncio.sleep(0)
        done = [number for number, (_, task) in enumerate(self.uploads) if task.done()]
        for number in done:
            error = self.uploads[number][1].exception()
            assert isinstance(error, DeadlineExceeded)
            assert error.reason == "UPLOAD_TOO_SLOW"
        return done


@asynccontextmanager
async def on_stage() -> AsyncIterator[Scene]:
    scene = Scene()
    try:
        yield scene
    finally:
        for _, task in scene.uploads:
            task.cancel()
        await asyncio.gather(*(task for _, task in scene.uploads), return_exceptions=True)


async def test_so_many_have_a_place_and_no_more() -> None:
    async with on_stage() as scene:
        for number in range(MAX_UPLOADS):
            assert await scene.start(f"{number}", MAX_CHUNK_BYTES) is None
        scene.now = 4.0
        refused = await scene.start("late", MAX_CHUNK_BYTES)
        assert isinstance(refused, Overloaded)
        assert refused.reason == "TOO_MANY_UPLOADS"
        # Nobody knows how long they will take: half as long as they have, say.
        assert refused.retry_after_s == 2.0
        assert await scene.ended() == []


async def test_a_tenant_leaves_places_and_room_to_others() -> None:
    async with on_stage() as scene:
        for tenant, number in (("a", MAX_UPLOADS // 2), ("b", MAX_UPLOADS // 4)):
            for _ in range(number):
                assert await scene.start(tenant, MAX_CHUNK_BYTES, tenant=tenant) is None
            assert isinstance(await scene.start(tenant, MAX_CHUNK_BYTES, tenant=tenant), Overloaded)
        assert await scene.start("c", MAX_CHUNK_BYTES, tenant="c") is None
    async with on_stage() as scene:
        half = MAX_WAITING_UPLOADS // 2
        for number in range(half):
            assert await scene.start(f"a{number}", MAX_WAITING_UPLOAD_BYTES - 1, with_place=False, tenant="a") is None
        assert isinstance(await scene.start("a", 1, with_place=False, tenant="a"), Overloaded)
        assert await scene.start("b", 1, with_place=False, tenant="b") is None
        # Of its own the slowest has to go.
        scene.now = 5.0
        assert await scene.start("a", 1, with_place=False, tenant="a") is None
        assert len(await scene.ended()) == 1


async def test_the_slowest_loses_its_place_to_who_comes() -> None:
    async with on_stage() as scene:
        for number in range(MAX_UPLOADS):
            assert await scene.start("", MAX_CHUNK_BYTES if number % 2 else MAX_WAITING_UPLOAD_BYTES + number) is None
        scene.now = 5.0
        assert await scene.start("late", MAX_CHUNK_BYTES) is None
        assert await scene.ended() == [0]
        assert await scene.start("later", MAX_CHUNK_BYTES) is None
        assert await scene.ended() == [0, 2]


async def test_so_many_wait_for_a_place() -> None:
    async with on_stage() as scene:
        half = MAX_WAITING_UPLOADS // 2
        for _ in range(half):
            assert await scene.start("a", MAX_WAITING_UPLOAD_BYTES - 1, with_place=False) is None
        refused = await scene.start("a", 1, with_place=False)
        assert isinstance(refused, Overloaded)
        assert refused.reason == "TOO_MANY_UPLOADS"
        for _ in range(half):
            assert await scene.start("b", MAX_WAITING_UPLOAD_BYTES - 1, with_place=False) is None
        assert isinstance(await scene.start("c", 1, with_place=False), Overloaded)
        # Once they are slow, who comes takes the room of one.
        scene.now = 3.0
        assert await scene.start("c", 1, with_place=False) is None
        assert len(await scene.ended()) == 1


async def test_a_slow_one_is_ended_though_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_places, "CHECK_S", 0.01)
    async with on_stage() as scene:
        assert await scene.start("slow", 1, with_place=False) is None
        assert await scene.start("fast", MAX_CHUNK_BYTES) is None
        scene.now = UPLOAD_GRACE_S
        await asyncio.sleep(0.05)
        assert await scene.ended() == []
        scene.now = UPLOAD_GRACE_S + 0.001
        await asyncio.wait({scene.uploads[0][1]}, timeout=5)
        assert await scene.ended() == [0]


async def test_places_are_given_back() -> None:
    places = UploadPlaces(600.0, Recorder())
    for _ in range(3):
        with ExitStack() as running:
            for _ in range(MAX_UPLOADS):
                upload = running.enter_context(places.upload(""))
                upload.take_place()
            with pytest.raises(Overloaded), places.upload("") as upload:
                upload.take_place()


async def test_uploads_that_drip_keep_nobody_from_registering(
    start_serving: StartServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_places, "UPLOAD_GRACE_S", 0.2)
    monkeypatch.setattr(upload_places, "CHECK_S", 0.05)
    harness = await start_serving()
    over = asyncio.Event()

    async def drip() -> AsyncIterator[pb.RegisterAdapterRequest]:
        yield pb.RegisterAdapterRequest(header=pb.RegisterAdapterHeader(task="slow"))
        yield pb.RegisterAdapterRequest(chunk=b"\0")
        await over.wait()

    drips = [harness.adapters.RegisterAdapter(drip()) for _ in range(MAX_UPLOADS + 1)]
    found = await asyncio.gather(*(refusal(call) for call in drips))
    assert set(found) == {(grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_TOO_SLOW")}
    over.set()
    assert harness.temporaries() == []


async def test_the_whole_of_an_upload_has_its_time() -> None:
    places = UploadPlaces(0.05, Recorder())

    async def receive(upload: Upload) -> None:
        async with upload.receiving():
            try:
                await upload.wait_for(asyncio.Event().wait())
            finally:
                upload.end()  # somebody else wants its place at the same moment

    with places.upload("") as upload:
        with pytest.raises(DeadlineExceeded) as said:
            await receive(upload)
        assert said.value.reason == "UPLOAD_TOO_SLOW"
