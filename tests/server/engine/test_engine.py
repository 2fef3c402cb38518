"""The engine behind its in-process channel: every request gets exactly one final event, and all credit comes back."""

import asyncio
import errno
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adamix.backbones.backbone import Backbone
from adamix.errors import Code
from adamix.evaluation.labelled import predict
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.modules.attach import attach
from adamix.rows.labelled import TokenRow
from adamix_server.blobs.local import BlobStore
from adamix_server.channel.channel import InProcessFrontEndChannel, in_process_pair
from adamix_server.channel.engine_frames import Cancel, Control, Credit, Emit, Event, Hello, Reply, Row, Submit
from adamix_server.channel.supervisor_frames import StartEngine
from adamix_server.config import EngineSettings
from adamix_server.engine.assembly import assemble
from adamix_server.engine.engine import Engine
from adamix_server.engine.request import Request
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import MakeRandomAdapter

ENGINE_ID = "0"
POISON = 63


class FrontEnd:
    """The smallest front end: submits rows and collects what comes back."""

    def __init__(self, channel: InProcessFrontEndChannel) -> None:
        self.channel = channel
        self.events: dict[int, Event] = {}
        self.credit = [0, 0]
        # What each Credit and Emit said: the rate, and what was queued.
        self.said: list[tuple[float, int]] = []
        self.replies: dict[int, Reply] = {}
        self.hello: Hello | None = None

    async def submit(self, *rows: Row) -> None:
        await self.channel.send(Submit(engine_id=ENGINE_ID, generation=1, rows=list(rows)))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():
                frame = await self.channel.receive()
                if isinstance(frame, Credit | Emit):
                    self.said.append((frame.queue.tokens_per_s, frame.queue.queued_tokens))
                match frame:
                    case Emit(events=events, credit_inputs=inputs, credit_tokens=tokens):
                        for event in events:
                            assert event.final
                            assert event.id not in self.events, "a second final event"
                            self.events[event.id] = event
                        self.credit[0] += inputs
                        self.credit[1] += tokens
                    case Credit(inputs=inputs, tokens=tokens):
                        self.credit[0] += inputs
                        self.credit[1] += tokens
                    case Reply() as reply:
                        self.replies[reply.call] = reply
                    case Hello() as hello:
                        self.hello = hello


class Harness:
    def __init__(self, tmp_path: Path, backbone: Backbone, slots: int, arena_bytes: int) -> None:
        self.blobs = BlobStore(tmp_path / "blobs")
        settings = EngineSettings(
            backbone="in-memory",
            device="cpu",
            dtype="float32",
            max_batch_tokens=64,
            slots=slots,
            arena_bytes=arena_bytes,
            host_cache_bytes=1 << 20,
            max_queue_inputs=1000,
            max_queue_tokens=10_000,
        )
        self.start = StartEngine(
            settings=settings,
            engine_id=ENGINE_ID,
            generation=1,
            address="",
            front_ends=1,
            store=tmp_path,
            tokenizer=tmp_path / "tokenizer.json",
            log_level="info",
        )
        self.backbone = backbone

    @asynccontextmanager
    async def running(self, prepare: Callable[[Engine], None] = lambda _: None) -> AsyncIterator[FrontEnd]:
        engine_end, front_end_end = await in_process_pair(ENGINE_ID, generation=1)
        recorder = Recorder()
        engine = assemble(self.start, engine_end, self.backbone, recorder, lambda: None)
        prepare(engine)
        thread = threading.Thread(target=engine.run, daemon=True)
        thread.start()
        front_end = FrontEnd(front_end_end)
        await front_end.until(lambda: front_end.hello is not None and front_end.credit[0] > 0)
        try:
            yield front_end
        finally:
            engine.drain()
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()
            assert not len(engine._scheduler)
            assert not len(engine._desk)
            assert all(slot.holds == 0 for slot in engine._adapters._slots)

    def add(self, adapter: AdapterFile) -> str:
        data = adapter_file.encode(adapter.manifest, adapter.tensors)
        self.blobs.put(data, adapter.digest)
        return adapter.digest


@pytest.fixture
def make_harness(tmp_path: Path, make_backbone: Callable[[], Backbone]) -> Callable[..., Harness]:
    return lambda slots=8, arena_bytes=1 << 20: Harness(tmp_path, make_backbone(), slots, arena_bytes)


def row(number: int, digest: str, tokens: list[int], deadline_s: float = 30.0, tenant: str = "default") -> Row:
    return Row(
        id=number,
        tenant=tenant,
        digest=digest,
        token_ids=np.asarray(tokens, "<i4").tobytes(),
        deadline=time.monotonic() + deadline_s,
    )


def tokens(number: int) -> list[int]:
    return np.random.default_rng(number).integers(1, 60, 1 + number % 13).tolist()


def logits(event: Event) -> Any:
    assert event.error is None
    return np.frombuffer(event.payload, "<f4")


def poisoned(engine: Engine, error: Callable[[], BaseException]) -> None:
    """Make every batch that holds the marker token fail."""
    run = engine._steps.runner.run

    def failing(requests: Sequence[Request]) -> Any:
        if any(POISON in request.token_ids for request in requests):
            raise error()
        return run(requests)

    engine._steps.runner.run = failing  # type: ignore[method-assign, assignment]


async def test_answers_equal_offline_whatever_shares_the_batch(
    make_harness: Callable[..., Harness],
    make_adapter: MakeRandomAdapter,
    make_backbone: Callable[[], Backbone],
) -> None:
    harness = make_harness()
    adapters = [make_adapter(i, num_labels=i + 1) for i in range(4)]
    adapters.append(make_adapter(9, kind="lora", sites=("attn_q", "attn_v"), num_labels=6))
    digests = [harness.add(adapter) for adapter in adapters]
    async with harness.running() as front_end:
        await front_end.submit(*(row(i, digests[i % 5], tokens(i)) for i in range(60)))
        await front_end.until(lambda: len(front_end.events) == 60)
    for i in range(60):
        alone = predict(
            attach(adapters[i % 5], make_backbone()), [TokenRow(tuple(tokens(i)), None, is_truncated=False)], pad_id=0
        )[0].numpy()
        np.testing.assert_allclose(logits(front_end.events[i]), alone, atol=2e-5, rtol=1e-4)
    room, given_back = harness.start.settings, sum(len(tokens(i)) for i in range(60))
    assert front_end.credit == [room.max_queue_inputs + 60, room.max_queue_tokens + given_back]
    timing = front_end.events[59].timing
    assert timing.batch_requests >= 1
    assert timing.batch_tokens <= 64


async def test_an_engine_says_how_fast_it_is_and_what_waits(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness()
    digest = harness.add(make_adapter(0))

    def slow(engine: Engine) -> None:
        # What the warm-up has shown, and then what no batch will reach.
        assert engine._rate.tokens_per_s > 0
        engine._rate = TokenRate(1e6, 64)
        run = engine._steps.runner.run

        def slowly(requests: Sequence[Request]) -> Any:
            time.sleep(0.05)
            return run(requests)

        engine._steps.runner.run = slowly  # type: ignore[method-assign]

    async with harness.running(slow) as front_end:
        # Before anybody has asked for anything.
        assert front_end.said == [(pytest.approx(1e6), 0)]
        # Eight batches of 64 tokens; at 50 ms each they are 1,280 a second, and less.
        rows = [row(i, digest, [1 + i % 50] * 16) for i in range(32)]
        await front_end.submit(*rows)
        await front_end.until(lambda: len(front_end.events) == 32)
    queued = [queued_tokens for _, queued_tokens in front_end.said[1:]]
    assert queued == [16 * 32 - 64 * (1 + number) for number in range(8)]
    # What a batch was like is known when the next one ends.
    measured = [tokens_per_s for tokens_per_s, _ in front_end.said[1:]]
    assert all(later < earlier for earlier, later in itertools.pairwise(measured))


async def test_a_loop_that_is_stuck_in_a_step_can_be_seen_from_outside(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness()
    digest = harness.add(make_adapter(0))
    engines: list[Engine] = []
    goes_on, is_stuck = threading.Event(), threading.Event()

    def stuck(engine: Engine) -> None:
        engines.append(engine)
        run = engine._steps.runner.run

        def wait(requests: Sequence[Request]) -> Any:
            is_stuck.set()
            goes_on.wait(10)
            return run(requests)

        engine._steps.runner.run = wait  # type: ignore[method-assign]

    async with harness.running(stuck) as front_end:
        (engine,) = engines
        # With nothing to do it goes on.
        before = engine.last_step
        await asyncio.sleep(0.2)
        assert engine.last_step > before
        await front_end.submit(row(0, digest, [1, 2]))
        await asyncio.to_thread(is_stuck.wait, 10)
        before = engine.last_step
        await asyncio.sleep(0.2)
        assert engine.last_step == before
        goes_on.set()
        await front_end.until(lambda: len(front_end.events) == 1)
        assert time.monotonic() - engine.last_step < 5


async def test_more_adapters_than_slots_are_all_answered(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness(slots=2)
    digests = [harness.add(make_adapter(i)) for i in range(7)]
    async with harness.running() as front_end:
        for start in (0, 70):
            await front_end.submit(*(row(start + i, digests[i % 7], tokens(i)) for i in range(70)))
        await front_end.until(lambda: len(front_end.events) == 140)
        for i in range(70):
            np.testing.assert_allclose(
                logits(front_end.events[i]), logits(front_end.events[70 + i]), atol=2e-5, rtol=1e-4
            )


async def test_a_missing_or_corrupt_blob_fails_its_own_requests_alone(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness()
    good, bad = harness.add(make_adapter(0)), harness.add(make_adapter(1))
    path = harness.blobs.path(bad)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    async with harness.running() as front_end:
        await front_end.submit(row(0, good, [1, 2]), row(1, bad, [1, 2]), row(2, "f" * 64, [1, 2]), row(3, good, [3]))
        await front_end.until(lambda: len(front_end.events) == 4)
        assert front_end.events[0].error is None
        assert front_end.events[3].error is None
        error = front_end.events[1].error
        assert error is not None
        assert error.code == Code.DATA_LOSS
        assert front_end.events[2].error is not None


async def test_a_store_that_is_lost_fails_what_is_not_resident_and_only_while_it_is(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter, tmp_path: Path
) -> None:
    harness = make_harness()
    resident, cold = harness.add(make_adapter(0)), harness.add(make_adapter(1))
    async with harness.running() as front_end:
        await front_end.submit(row(0, resident, [1, 2]))
        await front_end.until(lambda: 0 in front_end.events)
        away = (tmp_path / "blobs").rename(tmp_path / "away")
        await front_end.submit(row(1, resident, [1, 2]), row(2, cold, [1, 2]))
        await front_end.until(lambda: len(front_end.events) == 3)
        assert front_end.events[1].error is None
        error = front_end.events[2].error
        assert error is not None
        assert (error.code, error.reason) == (Code.UNAVAILABLE, "STORE_LOST")
        assert error.retry_after_s is not None
        away.rename(tmp_path / "blobs")
        await front_end.submit(row(3, cold, [1, 2]))
        await front_end.until(lambda: 3 in front_end.events)
        assert front_end.events[3].error is None


async def test_an_engine_without_descriptors_says_so_and_reads_again_later(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness()
    cold = harness.add(make_adapter(0))
    opened = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith(cold):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *arguments, **named)

    async with harness.running() as front_end:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            await front_end.submit(row(0, cold, [1, 2]))
            await front_end.until(lambda: 0 in front_end.events)
        error = front_end.events[0].error
        assert error is not None
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "OUT_OF_DESCRIPTORS")
        await front_end.submit(row(1, cold, [1, 2]))
        await front_end.until(lambda: 1 in front_end.events)
        assert front_end.events[1].error is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lambda: ValueError("secret /etc/path"), Code.INTERNAL),
        (lambda: torch.OutOfMemoryError("secret"), Code.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_request_that_breaks_its_batch_fails_alone(
    make_harness: Callable[..., Harness],
    make_adapter: MakeRandomAdapter,
    error: Callable[[], BaseException],
    code: Code,
) -> None:
    harness = make_harness()
    digest = harness.add(make_adapter(0))
    async with harness.running(lambda engine: poisoned(engine, error)) as front_end:
        rows = [row(i, digest, [POISON, 2] if i == 5 else tokens(i)) for i in range(32)]
        await front_end.submit(*rows)
        await front_end.until(lambda: len(front_end.events) == 32)
        failed = {i: e.error for i, e in front_end.events.items() if e.error is not None}
        assert set(failed) == {5}
        assert failed[5].code == code
        # It may fit when what waits now has been computed.
        assert (failed[5].retry_after_s is not None) is (code is Code.RESOURCE_EXHAUSTED)
        assert "secret" not in failed[5].message


async def test_an_engine_whose_device_is_lost_ends(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    """Better a new engine than one that answers INTERNAL for ever."""
    harness = make_harness()
    digest = harness.add(make_adapter(0))

    def lost(*_: Any) -> Any:
        raise RuntimeError("the device is lost")

    engine_end, front_end = await in_process_pair(ENGINE_ID, generation=1)
    engine = assemble(harness.start, engine_end, harness.backbone, Recorder(), lambda: None)
    engine._steps.runner.run = lost  # type: ignore[method-assign]
    engine._steps.runner.check_device = lost  # type: ignore[method-assign]
    await front_end.send(Submit(engine_id=ENGINE_ID, generation=1, rows=[row(0, digest, tokens(0))]))

    def steps() -> None:
        for _ in range(200):
            engine.step()

    with pytest.raises(RuntimeError, match="the device is lost"):
        steps()


async def test_cancelled_and_expired_requests_are_not_computed(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness()
    digest = harness.add(make_adapter(0))
    computes, go_on = threading.Event(), threading.Event()

    def prepare(engine: Engine) -> None:
        poisoned(engine, AssertionError)
        run = engine._steps.runner.run

        def slow(requests: Sequence[Request]) -> Any:
            computes.set()
            assert go_on.wait(20)
            return run(requests)

        engine._steps.runner.run = slow  # type: ignore[method-assign, assignment]

    async with harness.running(prepare) as front_end:
        await front_end.submit(row(0, digest, [POISON], deadline_s=-1.0))
        await front_end.until(lambda: 0 in front_end.events)
        error = front_end.events[0].error
        assert error is not None
        assert error.code == Code.DEADLINE_EXCEEDED
        # While the engine computes something else, both frames arrive: it sees them together.
        await front_end.submit(row(1, digest, tokens(1)))
        await asyncio.to_thread(computes.wait, 20)
        await front_end.submit(row(2, digest, [POISON]))
        await front_end.channel.send(Cancel(engine_id=ENGINE_ID, generation=1, ids=[2]))
        go_on.set()
        await front_end.until(lambda: front_end.events.keys() == {0, 1, 2})
        error = front_end.events[2].error
        assert error is not None
        assert error.code == Code.CANCELLED
        assert front_end.events[1].error is None
        assert front_end.credit == [1003, 10_002 + len(tokens(1))]


async def test_control_calls(make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter) -> None:
    harness = make_harness()
    digest = harness.add(make_adapter(0))
    async with harness.running() as front_end:

        async def ask(call: int, op: Any, what: str) -> Reply:
            control = Control(engine_id=ENGINE_ID, generation=1, call=call, op=op, digest=what, digests=[what] * 2)
            await front_end.channel.send(control)
            await front_end.until(lambda: call in front_end.replies)
            return front_end.replies[call]

        assert (await ask(1, "residencies", digest)).value == ["store", "store"]
        assert (await ask(2, "load", digest)).error is None
        assert (await ask(3, "residencies", digest)).value == ["host", "host"]
        await front_end.submit(row(0, digest, [1]))
        await front_end.until(lambda: 0 in front_end.events)
        assert (await ask(4, "residencies", digest)).value == ["device", "device"]
        assert (await ask(5, "in_use", digest)).value == []
        assert (await ask(6, "load", "e" * 64)).error is not None


async def test_loading_unloading_and_pinning(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness(slots=2)
    digests = [harness.add(make_adapter(i)) for i in range(4)]
    async with harness.running() as front_end:

        async def ask(op: Any, digest: str = "") -> Any:
            call = len(front_end.replies) + 1
            control = Control(engine_id=ENGINE_ID, generation=1, call=call, op=op, digest=digest, digests=[digest])
            await front_end.channel.send(control)
            await front_end.until(lambda: call in front_end.replies)
            reply = front_end.replies[call]
            return reply.value if reply.error is None else reply.error.reason

        assert await ask("activate", digests[0]) == "device"
        assert await ask("unload", digests[0]) == "store"
        assert await ask("residencies", digests[0]) == ["store"]
        assert await ask("pin", digests[0]) == "device"
        assert await ask("pins") == [digests[0]]
        assert await ask("unload", digests[0]) == "VERSION_PINNED"
        assert await ask("pin", digests[1]) == "TOO_MANY_PINNED"
        assert await ask("in_use", digests[0]) == []
        # One slot is left for all the others; the pinned one answers from the slot it keeps.
        await front_end.submit(*(row(i, digests[i % 4], tokens(i)) for i in range(40)))
        await front_end.until(lambda: len(front_end.events) == 40)
        assert all(event.error is None for event in front_end.events.values())
        assert await ask("residencies", digests[0]) == ["device"]
        await front_end.submit(row(100, digests[0], tokens(0)))
        await front_end.until(lambda: 100 in front_end.events)
        np.testing.assert_allclose(logits(front_end.events[100]), logits(front_end.events[0]), atol=2e-5, rtol=1e-4)
        assert await ask("unpin", digests[0]) == "device"
        assert await ask("pins") == []
        assert await ask("pin", "e" * 64) not in ("device", None)


async def test_an_adapter_larger_than_the_arena_is_refused_when_it_is_loaded(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness(arena_bytes=1 << 20)
    small = harness.add(make_adapter(0, rank=1))
    large = harness.add(make_adapter(1, rank=1024, sites=("attn_q", "attn_out", "mlp_out")))
    async with harness.running() as front_end:
        await front_end.channel.send(Control(engine_id=ENGINE_ID, generation=1, call=1, op="load", digest=large))
        await front_end.until(lambda: 1 in front_end.replies)
        error = front_end.replies[1].error
        assert error is not None
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "ADAPTER_TOO_LARGE_FOR_SERVER")
        await front_end.submit(row(0, large, [1]), row(1, small, [1]))
        await front_end.until(lambda: len(front_end.events) == 2)
        assert front_end.events[0].error is not None
        assert front_end.events[1].error is None


class Asking:
    """What tenants ask of one adapter."""

    def __init__(self, front_end: FrontEnd, digest: str) -> None:
        self._front_end = front_end
        self._digest = digest

    async def __call__(self, op: Any, tenant: str = "", *, is_kept: bool = False) -> Any:
        call = len(self._front_end.replies) + 1
        control = Control(
            engine_id=ENGINE_ID,
            generation=1,
            call=call,
            op=op,
            digest=self._digest,
            digests=[self._digest],
            tenant=tenant,
            is_kept=is_kept,
        )
        await self._front_end.channel.send(control)
        await self._front_end.until(lambda: call in self._front_end.replies)
        reply = self._front_end.replies[call]
        return reply.value if reply.error is None else reply.error.reason

    async def where(self, *tenants: str) -> list[str]:
        return [(await self("residencies", tenant))[0] for tenant in tenants]


async def test_what_one_tenant_does_with_shared_bytes_does_not_show_to_another(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    """The server itself, who asks without a tenant, sees them as they are."""
    harness = make_harness()
    digest = harness.add(make_adapter(0))
    async with harness.running() as front_end:
        ask = Asking(front_end, digest)
        assert await ask("activate", "one") == "device"
        assert await ask.where("one", "two", "") == ["device", "store", "device"]
        assert await ask("unload", "two") == "store"
        assert await ask.where("one", "two", "") == ["store", "store", "store"], "nobody was said to need it"
        assert await ask("activate", "one") == "device"
        await front_end.submit(row(0, digest, [1], tenant="two"))
        await front_end.until(lambda: 0 in front_end.events)
        assert await ask.where("one", "two", "") == ["device", "device", "device"]
        assert await ask("unload", "one", is_kept=True) == "store"
        assert await ask.where("one", "two", "") == ["store", "device", "device"]
        assert await ask("pin", "two") == "device"
        assert await ask("unload", "one") == "store"
        assert await ask.where("one", "two", "") == ["store", "device", "device"]
        assert await ask("unpin", "two") == "device"
        assert await ask("unload", "one") == "store"
        assert await ask.where("one", "two", "") == ["store", "store", "store"]


async def test_an_unload_refuses_for_requests_of_its_own_tenant_alone(
    make_harness: Callable[..., Harness], make_adapter: MakeRandomAdapter
) -> None:
    harness = make_harness()
    digest = harness.add(make_adapter(0))
    go_on = threading.Event()

    def prepare(engine: Engine) -> None:
        read = engine._adapters._read

        def read_later(digest: str) -> Any:
            go_on.wait(20)
            return read(digest)

        engine._adapters._read = read_later

    async with harness.running(prepare) as front_end:
        ask = Asking(front_end, digest)
        await front_end.submit(row(0, digest, [1], tenant="two"))
        assert await ask("unload", "one") == "store"
        assert await ask("unload", "two") == "VERSION_IN_USE"
        assert await ask("unload", "two", is_kept=True) == "VERSION_IN_USE"
        await front_end.submit(row(1, digest, [1], tenant="one"))
        assert await ask("unload", "one", is_kept=True) == "VERSION_IN_USE"
        go_on.set()
        await front_end.until(lambda: len(front_end.events) == 2)
        assert all(event.error is None for event in front_end.events.values())
