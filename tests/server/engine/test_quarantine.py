"""Adapters whose inputs fail: alone, whatever the kind and the place in the batch; and not again and again."""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamix.backbones.backbone import Backbone
from adamix.errors import Code, InternalError, Overloaded
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix_kernels.weights import BottleneckWeights, HeadWeights
from adamix_server.blobs.local import BlobStore
from adamix_server.channel.channel import in_process_pair
from adamix_server.channel.engine_frames import Control, Emit, Event, Op, Quarantined, Row, Submit
from adamix_server.channel.supervisor_frames import StartEngine
from adamix_server.config import EngineSettings
from adamix_server.engine.assembly import assemble
from adamix_server.engine.quarantine import Quarantine
from adamix_server.engine.request import Request
from adamix_server.limits.adapters import FAILURES_TO_QUARANTINE, MAX_QUARANTINED, QUARANTINE_WINDOW_S
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.adapters import MakeRandomAdapter

ENGINE_ID = "0"


class Driven:
    """An engine whose steps the test makes, and the front end that asks it."""

    def __init__(self, tmp_path: Path, backbone: Backbone) -> None:
        self.blobs = BlobStore(tmp_path / "blobs")
        self.events: dict[int, Event] = {}
        self.told: list[set[tuple[str, str, str]]] = []
        self.recorder = Recorder()
        self._backbone = backbone
        self._start = StartEngine(
            settings=EngineSettings(
                backbone="in-memory",
                device="cpu",
                dtype="float32",
                max_batch_tokens=256,
                slots=8,
                arena_bytes=1 << 20,
                deterministic=True,
            ),
            engine_id=ENGINE_ID,
            generation=1,
            address="",
            front_ends=1,
            store=tmp_path,
            tokenizer=tmp_path / "tokenizer.json",
            log_level="info",
        )

    async def start(self) -> "Driven":
        engine_end, self.front_end = await in_process_pair(ENGINE_ID, generation=1)
        self.engine = assemble(self._start, engine_end, self._backbone, self.recorder, lambda: None)
        return self

    def add(self, adapter: AdapterFile) -> str:
        self.blobs.put(adapter_file.encode(adapter.manifest, adapter.tensors), adapter.digest)
        return adapter.digest

    async def load(self, *digests: str) -> None:
        """Into slots, so that what is submitted together runs in one batch."""
        for digest in digests:
            await self.control("activate", digest)
        async with asyncio.timeout(20):
            while not all(map(self.engine._adapters.is_ready, digests)):
                await self._step()

    async def ask(self, *rows: tuple[int, str], tenant: str = "default") -> dict[int, Event]:
        """The events of rows (id, digest); the tokens follow from the id."""
        made = [_row(number, digest, tenant) for number, digest in rows]
        await self.front_end.send(Submit(engine_id=ENGINE_ID, generation=1, rows=made))
        async with asyncio.timeout(20):
            while any(number not in self.events for number, _ in rows):
                await self._step()
        return {number: self.events.pop(number) for number, _ in rows}

    async def reasons(self, digest: str, times: int, tenant: str = "default") -> list[str]:
        """Of so many inputs, one after another: what each is told, or is not finite; empty for an answer."""
        return [_reason((await self.ask((1, digest), tenant=tenant))[1]) for _ in range(times)]

    async def control(self, op: Op, digest: str, tenant: str = "default") -> None:
        await self.front_end.send(
            Control(engine_id=ENGINE_ID, generation=1, call=1, op=op, digest=digest, tenant=tenant)
        )
        await self._step()

    async def _step(self) -> None:
        self.engine.step()
        await asyncio.sleep(0)
        while not self.front_end._frames.empty():
            match await self.front_end.receive():
                case Emit(events=events):
                    self.events.update({event.id: event for event in events})
                case Quarantined(versions=versions):
                    self.told.append({(each.tenant, each.digest, each.reason) for each in versions})


def _row(number: int, digest: str, tenant: str) -> Row:
    ids = np.random.default_rng(number).integers(1, 60, 2 + number % 13).astype("<i4")
    return Row(id=number, tenant=tenant, digest=digest, token_ids=ids.tobytes(), deadline=time.monotonic() + 30)


def _reason(event: Event) -> str:
    if event.error is not None:
        return event.error.reason
    return "" if np.isfinite(np.frombuffer(event.payload, "<f4")).all() else "not finite"


@pytest.fixture
async def driven(tmp_path: Path, make_backbone: Callable[[], Backbone]) -> Driven:
    return await Driven(tmp_path, make_backbone()).start()


def overflow(driven: Driven, digest: str) -> None:
    """Weights that are finite, with which a row's values are not."""
    slot, packed = driven.engine._adapters._slots.get(digest), driven.engine._adapters._cache.get(digest)
    assert slot is not None
    assert packed is not None
    driven.engine._steps.runner._bank.clear(slot.index)
    driven.engine._steps.runner._bank.write(
        slot.index, slot.offset, dataclasses.replace(packed, data=packed.data * 1e38)
    )


def break_site(driven: Driven, digest: str) -> None:
    slot = driven.engine._adapters._slots.get(digest)
    assert slot is not None
    wrong = BottleneckWeights(torch.ones(2, 7), None, torch.ones(2, 7), None, 1.0, "gelu")
    driven.engine._steps.runner._bank.sites[0, "mlp_out"].enter(slot.index, wrong)


def break_head(driven: Driven, digest: str) -> None:
    slot = driven.engine._adapters._slots.get(digest)
    assert slot is not None
    wrong = HeadWeights(dense=None, dense_bias=None, activation=None, out=torch.ones(3, 7), out_bias=None)
    driven.engine._steps.runner._bank.heads[slot.index] = wrong


KINDS = {"not finite": overflow, "adapter raises": break_site, "head raises": break_head}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 2, 5])
async def test_a_poison_row_ends_alone_and_its_neighbours_keep_their_bits(
    kind: str, place: int, driven: Driven, make_adapter: MakeRandomAdapter
) -> None:
    good = [driven.add(make_adapter(seed)) for seed in range(2)]
    bad = driven.add(make_adapter(9))
    await driven.load(*good, bad)
    KINDS[kind](driven, bad)
    rows = [(number, good[number // 3]) for number in range(5)]
    alone = {number: (await driven.ask((number, digest)))[number].payload for number, digest in rows}
    rows.insert(place, (99, bad))
    events = await driven.ask(*rows)
    assert _reason(events.pop(99)) == ("not finite" if kind == "not finite" else "INTERNAL")
    assert {number: event.payload for number, event in events.items()} == alone


@pytest.mark.parametrize("kind", KINDS)
async def test_what_fails_three_times_is_no_longer_run_until_it_is_lifted(
    kind: str, driven: Driven, make_adapter: MakeRandomAdapter
) -> None:
    bad = driven.add(make_adapter(9))
    await driven.load(bad)
    KINDS[kind](driven, bad)
    fails, why = ("not finite", "NON_FINITE_OUTPUT") if kind == "not finite" else ("INTERNAL", "INTERNAL")
    assert await driven.reasons(bad, 5) == [fails, fails, fails, "ADAPTER_QUARANTINED", "ADAPTER_QUARANTINED"]
    assert driven.told == [set(), {("default", bad, why)}], "said at once, and once"
    assert await driven.reasons(bad, 2, tenant="other") == [fails, fails], "the same bytes of another tenant"
    await driven.control("lift", bad)
    assert driven.told[-1] == set()
    assert await driven.reasons(bad, 4) == [fails, fails, fails, "ADAPTER_QUARANTINED"]
    # A front end that comes later knows, too.
    await driven.control("hello", "")
    assert driven.told[-1] == {("default", bad, why)}


async def test_what_waits_for_an_adapter_that_is_quarantined_meanwhile_ends(
    driven: Driven, make_adapter: MakeRandomAdapter
) -> None:
    """A call of many inputs does not fail them one by one."""
    bad = driven.add(make_adapter(9))
    await driven.load(bad)
    overflow(driven, bad)
    events = await driven.ask(*((number, bad) for number in range(100)))
    reasons = [_reason(event) for event in events.values()]
    assert set(reasons) == {"not finite", "ADAPTER_QUARANTINED"}
    assert driven.told[-1] == {("default", bad, "NON_FINITE_OUTPUT")}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("secret"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_want_of_memory_is_no_fault_of_an_adapter(
    error: Exception, driven: Driven, make_adapter: MakeRandomAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = driven.add(make_adapter(0))

    def short(_requests: object) -> None:
        raise error

    monkeypatch.setattr(driven.engine._steps.runner, "run", short)
    assert set(await driven.reasons(digest, 5)) == {Overloaded.default_reason}
    assert driven.told == [set()]


async def test_what_fails_without_an_adapter_as_well_is_held_against_none(
    driven: Driven, make_adapter: MakeRandomAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = driven.add(make_adapter(0))

    def broken(*_: object) -> None:
        raise RuntimeError("the backbone")

    monkeypatch.setattr(driven.engine._steps.runner, "hidden_states", broken)
    assert set(await driven.reasons(digest, 5)) == {"INTERNAL"}
    assert driven.told == [set()]


def test_three_failures_in_ten_minutes_and_not_two() -> None:
    quarantine = Quarantine()
    assert FAILURES_TO_QUARANTINE == 3
    for now in (0.0, 1.0, QUARANTINE_WINDOW_S + 0.5):  # the first is forgotten by then
        assert not quarantine.failed("one", "a", "WHY", now)
    assert quarantine.error("one", "a") is None
    assert quarantine.failed("one", "a", "WHY", QUARANTINE_WINDOW_S + 0.9)
    refusal = quarantine.error("one", "a")
    assert refusal is not None
    assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "ADAPTER_QUARANTINED")
    assert quarantine.error("two", "a") is None
    assert quarantine.error("one", "b") is None
    assert not quarantine.failed("one", "a", "LATER", QUARANTINE_WINDOW_S + 1.0)
    assert quarantine.reasons == {("one", "a"): "WHY"}


def test_a_lift_forgets_failures_that_were_too_few() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.failed("one", "a", "WHY", 0.0)
    assert not quarantine.lift("one", "a")
    assert not quarantine.failed("one", "a", "WHY", 0.0)


def test_only_so_many_are_remembered() -> None:
    quarantine = Quarantine()
    for number in range(MAX_QUARANTINED + 1):
        for _ in range(3):
            quarantine.failed("one", str(number), "WHY", 0.0)
    assert len(quarantine.reasons) == MAX_QUARANTINED
    assert quarantine.error("one", "0") is None
    for number in range(MAX_QUARANTINED + 1):
        quarantine.failed("two", str(number), "WHY", 0.0)
    # Of the first nothing is known any more; of the second, one failure.
    assert [quarantine.failed("two", "0", "WHY", 0.0) for _ in range(3)] == [False, False, True]
    assert [quarantine.failed("two", "2", "WHY", 0.0) for _ in range(2)] == [False, True]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 400)), max_size=40))
def test_it_is_quarantined_by_the_third_failure_in_its_window(failures: list[tuple[str, float]]) -> None:
    quarantine, now, times = Quarantine(), 0.0, dict[str, list[float]](a=[], b=[])
    for digest, pause in failures:
        now += pause
        was = quarantine.error("one", digest) is not None
        times[digest].append(now)
        recent = [at for at in times[digest] if at > now - QUARANTINE_WINDOW_S]
        assert quarantine.failed("one", digest, "WHY", now) is (not was and len(recent) >= 3)


def test_few_are_tried_without_their_adapter_however_many_fail() -> None:
    """Each costs as much as another input."""
    quarantine, tried = Quarantine(), []
    requests = [Request.of_tokens(np.arange(3, dtype=np.int32)) for _ in range(50)]
    newly = quarantine.judge(
        requests, [InternalError("x")] * 50, lambda request: tried.append(request) is None and False, 0.0
    )
    assert newly == []
    assert len(tried) == FAILURES_TO_QUARANTINE
