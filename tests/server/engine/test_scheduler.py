"""The scheduler: whole requests, a token budget, nobody passed over, nobody lost."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import InternalError
from adamix_server.channel.engine_frames import Row
from adamix_server.engine.request import Request, Status
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.scheduler import Scheduler


def request(number: int, digest: str = "a", tokens: int = 10, deadline: float = 100.0) -> Request:
    row = Row(id=number, tenant="default", digest=digest, token_ids=bytes(4 * tokens), deadline=deadline)
    return Request(row, b"peer", arrived=float(number), hold=Hold(digest, since=float(number)))


def ids(requests: Iterable[Request]) -> list[int]:
    return [r.row.id for r in requests]


def always(_: str) -> bool:
    return True


requests = st.lists(
    st.builds(lambda d, n: (d, n), st.sampled_from("abcde"), st.integers(1, 120)), min_size=1, max_size=60
).map(lambda rows: [request(i, digest, tokens) for i, (digest, tokens) in enumerate(rows)])


@given(requests, st.integers(16, 256))
def test_every_request_runs_exactly_once_within_the_budget(queue: list[Request], budget: int) -> None:
    scheduler = Scheduler(budget)
    for item in queue:
        scheduler.add(item)
    seen: list[int] = []
    while (batch := scheduler.next_batch(always, 0.0, 1e6)) is not None:
        assert batch.num_tokens <= budget or len(batch.requests) == 1
        assert all(r.status is Status.RUNNING for r in batch.requests)
        seen += ids(batch.requests)
    assert sorted(seen) == ids(queue)
    assert len(scheduler) == 0


@given(requests, st.integers(16, 256))
def test_the_oldest_ready_request_is_in_the_very_next_batch(queue: list[Request], budget: int) -> None:
    scheduler = Scheduler(budget)
    for item in queue:
        scheduler.add(item)
    while len(scheduler):
        oldest = next(iter(scheduler))
        batch = scheduler.next_batch(always, 0.0, 1e6)
        assert batch is not None
        assert oldest in batch.requests


@given(requests, st.integers(16, 256), st.data())
def test_the_tokens_of_the_queue_are_counted_as_requests_come_and_go(
    queue: list[Request], budget: int, data: st.DataObject
) -> None:
    scheduler = Scheduler(budget)
    for item in queue:
        scheduler.add(item)
        assert scheduler.queued_tokens == sum(request.num_tokens for request in scheduler)
    while len(scheduler):
        if data.draw(st.booleans()):
            scheduler.end(next(iter(scheduler)))
        else:
            scheduler.next_batch(always, 0.0, 1e6)
        assert scheduler.queued_tokens == sum(request.num_tokens for request in scheduler)
    assert scheduler.queued_tokens == 0


@given(requests, st.sets(st.sampled_from("abcde")))
def test_requests_whose_adapter_is_not_ready_wait(queue: list[Request], ready: set[str]) -> None:
    scheduler = Scheduler(64)
    for item in queue:
        scheduler.add(item)
    while (batch := scheduler.next_batch(ready.__contains__, 0.0, 1e6)) is not None:
        assert {r.row.digest for r in batch.requests} <= ready
    assert {r.row.digest for r in scheduler}.isdisjoint(ready)
    assert len(scheduler) == sum(r.row.digest not in ready for r in queue)


@given(requests)
def test_rows_of_one_adapter_lie_together(queue: list[Request]) -> None:
    scheduler = Scheduler(512)
    for item in queue:
        scheduler.add(item)
    batch = scheduler.next_batch(always, 0.0, 1e6)
    assert batch is not None
    digests = [r.row.digest for r in batch.requests]
    changes = sum(a != b for a, b in pairwise(digests))
    assert changes + 1 == batch.num_adapters


def test_the_second_half_of_the_budget_prefers_adapters_already_in_the_batch() -> None:
    scheduler = Scheduler(40)
    for i, digest in enumerate("abcdabab"):
        scheduler.add(request(i, digest))
    batch = scheduler.next_batch(always, 0.0, 1e6)
    assert batch is not None
    assert batch.num_adapters == 2
    assert sorted(ids(batch.requests)) == [0, 1, 4, 6]


def test_a_request_longer_than_the_budget_runs_alone() -> None:
    scheduler = Scheduler(16)
    scheduler.add(request(0, tokens=100))
    scheduler.add(request(1, tokens=1))
    first = scheduler.next_batch(always, 0.0, 1e6)
    assert first is not None
    assert ids(first.requests) == [0]


def test_answered_requests_leave_no_deadlines_behind() -> None:
    scheduler = Scheduler(max_batch_tokens=100)
    for i in range(20_000):
        answered = request(i, deadline=float(i % 7))
        scheduler.add(answered)
        scheduler.end(answered)
    scheduler.add(request(20_000, deadline=3.0))
    assert len(scheduler._deadlines) < 2_000
    assert ids(scheduler.expired(now=10.0)) == [20_000]


def test_expired_and_cancelled_requests_leave_the_queue() -> None:
    scheduler = Scheduler(100)
    for i, deadline in enumerate((5.0, 50.0, 5.0)):
        scheduler.add(request(i, deadline=deadline))
    expired = scheduler.expired(now=5.0)
    assert ids(expired) == [0, 2]
    for item in expired:
        scheduler.end(item)
    assert scheduler.expired(now=5.0) == []
    cancelled = scheduler.find(b"peer", 1)
    assert cancelled is not None
    assert scheduler.find(b"another", 1) is None
    scheduler.end(cancelled)
    assert scheduler.find(b"peer", 1) is None
    assert scheduler.next_batch(always, 0.0, 1e6) is None


def test_a_request_ends_once_queued_or_running() -> None:
    scheduler = Scheduler(100)
    queued, running = request(0, "a"), request(1, "b")
    scheduler.add(queued)
    scheduler.add(running)
    assert scheduler.next_batch("b".__eq__, 0.0, 1e6) is not None
    assert scheduler.find(b"peer", 1) is None
    for item in (queued, running):
        scheduler.end(item)
        with pytest.raises(InternalError, match="ended twice"):
            scheduler.end(item)
    assert len(scheduler) == 0
    assert scheduler.expired(now=1000.0) == []


def test_a_failed_adapter_takes_its_requests_out() -> None:
    scheduler = Scheduler(100)
    for i, digest in enumerate("abab"):
        scheduler.add(request(i, digest))
    assert ids(scheduler.of("a")) == [0, 2]
    for item in scheduler.of("a"):
        scheduler.end(item)
    assert ids(scheduler) == [1, 3]
    assert scheduler.of("a") == []
