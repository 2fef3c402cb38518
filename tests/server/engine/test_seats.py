"""Slots among tenants that ask for more adapters than there are slots."""

import time
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.channel.engine_frames import Event, Hello, Limits, Row, Submit
from adamix_server.engine.encoding import Encoding
from adamix_server.engine.engine import Engine
from adamix_server.engine.residency.host_cache import HostCache
from adamix_server.engine.residency.loader import AdapterLoader
from adamix_server.engine.residency.seats import seating
from adamix_server.engine.residency.slots import Slots
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.token_rate import TokenRate
from adamix_server.telemetry.metrics import Recorder
from adamix_testing.manifests import no_model_spec

PEER = b"front end"
SLOTS, TOKENS = 4, 8


class AtOnce(Executor):
    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        function(*args, **kwargs)
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


def _packed(digest: str) -> SimpleNamespace:
    return SimpleNamespace(digest=digest, num_bytes=256)


class Small:
    """An engine with few slots, whose batches take eight requests."""

    def __init__(self) -> None:
        self.inbox: list[Any] = []
        self.answered: list[int] = []
        self.num_rows = 0
        bank: Any = SimpleNamespace(write=lambda *_: None, clear=lambda _: None)
        read: Any = _packed
        runner: Any = SimpleNamespace(run=lambda requests: [np.zeros(2, np.float32) for _ in requests])
        channel: Any = SimpleNamespace(poll=self._poll, send=self._send)
        limits = Limits(max_batch_tokens=8 * TOKENS, max_queue_inputs=4096, max_queue_tokens=65_536, slots=SLOTS)
        self.loader = AdapterLoader(
            Slots(SLOTS, 1 << 20), bank, HostCache(1 << 20), read, lambda: None, Recorder(), AtOnce()
        )
        self.engine = Engine(
            channel,
            Encoding(runner, Scheduler(limits.max_batch_tokens)),
            self.loader,
            Hello(
                engine_id="0",
                generation=1,
                spec=no_model_spec(max_tokens=512),
                limits=limits,
                dtype="float32",
                device="cpu",
            ),
            TokenRate(1e6, limits.max_batch_tokens),
            Recorder(),
            lambda: None,
        )

    def ask(self, tenant: str, digest: str) -> int:
        self.num_rows += 1
        row = Row(
            id=self.num_rows,
            tenant=tenant,
            digest=digest,
            token_ids=bytes(4 * TOKENS),
            deadline=time.monotonic() + 1e6,
        )
        self.inbox.append((PEER, Submit(engine_id="0", generation=1, rows=[row])))
        return row.id

    def steps_until(self, row_id: int) -> int:
        for number in range(1, 1000):
            self.engine.step()
            if row_id in self.answered:
                return number
        raise AssertionError("it is never answered")

    def _poll(self, _: float) -> list[Any]:
        arrived, self.inbox = self.inbox, []
        return arrived

    def _send(self, _: bytes, frame: Any) -> bool:
        events: list[Event] = frame.events
        self.answered += [event.id for event in events if event.error is None]
        return True


@pytest.mark.parametrize("adapters", [SLOTS + 1, 10 * SLOTS])
def test_a_tenant_with_more_adapters_than_slots_does_not_keep_another_from_one(adapters: int) -> None:
    small = Small()
    flood = [small.ask("flood", f"its-{number % adapters}") for number in range(800)]
    small.engine.step()
    waits = []
    for _ in range(10):
        # Its adapter has lost its slot since the last call, because it had nothing queued.
        waits.append(small.steps_until(small.ask("other", "only")))
        small.engine.step()
    # The batch in which it is found that there is no slot, and its own.
    assert max(waits) <= 3
    while len(small.answered) < small.num_rows:
        small.engine.step()
    assert sorted(small.answered) == list(range(1, small.num_rows + 1))
    assert set(flood) <= set(small.answered)
    assert all(slot.holds == 0 for slot in small.loader._slots)


def test_tenants_with_as_many_slots_take_none_from_each_other() -> None:
    small = Small()
    for number in range(400):
        small.ask("ab"[number % 2], f"{'ab'[number % 2]}-{number // 2 % 8}")
    evictions = 0
    while len(small.answered) < small.num_rows:
        small.engine.step()
        evictions = (
            sum(
                sample.values[0]
                for sample in small.loader._recorder.drain()
                if sample.name == "adamix_adapter_evictions_total" and sample.labels == ("device",)
            )
            + evictions
        )
    # Each of the 16 comes and goes once, or hardly more often.
    assert evictions <= 20


def test_the_fewest_by_weight_are_seated_first_and_who_has_too_many_gives_one_up() -> None:
    owners = {"a1": "a", "a2": "a", "a3": "a", "a4": "a", "b1": "b", "c1": "c", "c2": "c"}
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}

    def seated(waiting: list[str], held: list[str]) -> tuple[list[str], str | None]:
        return seating(waiting, held, lambda digest: {owners[digest]} & set(weights), weights.__getitem__)

    assert seated(["a4", "b1"], ["a1", "a2", "a3"]) == (["b1", "a4"], "a1")
    # It would have as many as the other then.
    assert seated(["a4", "b1"], ["a1"]) == (["b1", "a4"], None)
    assert seated(["b1", "c2"], ["c1", "a1", "a2"]) == (["b1", "c2"], "a1")
    # Nobody is left with less than who gets it.
    assert seated(["c1"], ["a1"]) == (["c1"], None)
    # Pinned, for nobody's requests.
    owners["p"] = "nobody"
    assert seated(["b1", "p"], ["a1", "a2"]) == (["p", "b1"], None)
    # An adapter that somebody needs who has no other is not taken away.
    both: dict[str, set[str]] = {"a1": {"a", "b"}, "a2": {"a"}, "c1": {"c"}}
    assert seating(["c1"], ["a1", "a2"], both.__getitem__, lambda _: 1.0) == (["c1"], "a2")
    # Nor is one that is computed with now.
    assert seating(["b1"], ["a1", "a2"], lambda digest: {owners[digest]}, lambda _: 1.0, {"a1"}) == (["b1"], "a2")
    assert seating(["b1"], ["a1", "a2"], lambda digest: {owners[digest]}, lambda _: 1.0, {"a1", "a2"}) == (["b1"], None)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True), st.lists(st.sampled_from("stuvwxyz"), unique=True))
def test_of_one_tenant_alone_the_order_stays_and_nothing_is_taken(waiting: list[str], held: list[str]) -> None:
    assert seating(waiting, held, lambda _: {"only"}, lambda _: 1.0) == (waiting, None)
