"""The scheduler: whole requests, a token budget, nobody passed over, nobody lost."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from adamix_server.engine.request import Request
from adamix_server.engine.scheduler import Scheduler


def request(number: int, digest: str = "a", tokens: int = 10, deadline: float = 100.0) -> Request:
    return Request(b"peer", number, "default", digest, bytes(4 * tokens), None, deadline, arrived=float(number))


def ids(batch: object) -> list[int]:
    return [r.id for r in batch.requests]  # type: ignore[attr-defined]


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
    while (batch := scheduler.next_batch(always)) is not None:
        assert batch.num_tokens <= budget or len(batch.requests) == 1
        seen += ids(batch)
    assert sorted(seen) == [r.id for r in queue]
    assert len(scheduler) == 0


@given(requests, st.integers(16, 256))
def test_the_oldest_ready_request_is_in_the_very_next_batch(queue: list[Request], budget: int) -> None:
    scheduler = Scheduler(budget)
    for item in queue:
        scheduler.add(item)
    while len(scheduler):
        oldest = next(iter(scheduler))
        batch = scheduler.next_batch(always)
        assert batch is not None
        assert oldest in batch.requests


@given(requests, st.sets(st.sampled_from("abcde")))
def test_requests_whose_adapter_is_not_ready_wait(queue: list[Request], ready: set[str]) -> None:
    scheduler = Scheduler(64)
    for item in queue:
        scheduler.add(item)
    while (batch := scheduler.next_batch(ready.__contains__)) is not None:
        assert {r.digest for r in batch.requests} <= ready
    assert {r.digest for r in scheduler}.isdisjoint(ready)
    assert len(scheduler) == sum(r.digest not in ready for r in queue)


@given(requests)
def test_rows_of_one_adapter_lie_together(queue: list[Request]) -> None:
    scheduler = Scheduler(512)
    for item in queue:
        scheduler.add(item)
    batch = scheduler.next_batch(always)
    assert batch is not None
    digests = [r.digest for r in batch.requests]
    changes = sum(a != b for a, b in pairwise(digests))
    assert changes + 1 == batch.num_adapters


def test_the_second_half_of_the_budget_prefers_adapters_already_in_the_batch() -> None:
    scheduler = Scheduler(40)
    for i, digest in enumerate("abcdabab"):
        scheduler.add(request(i, digest))
    batch = scheduler.next_batch(always)
    assert batch is not None
    assert batch.num_adapters == 2
    assert sorted(ids(batch)) == [0, 1, 4, 6]


def test_a_request_longer_than_the_budget_runs_alone() -> None:
    scheduler = Scheduler(16)
    scheduler.add(request(0, tokens=100))
    scheduler.add(request(1, tokens=1))
    first = scheduler.next_batch(always)
    assert first is not None
    assert ids(first) == [0]


def test_answered_requests_leave_no_deadlines_behind() -> None:
    scheduler = Scheduler(max_batch_tokens=100)
    for i in range(20_000):
        scheduler.add(request(i, deadline=float(i % 7)))
        scheduler.remove((b"peer", i))
    scheduler.add(request(20_000, deadline=3.0))
    assert len(scheduler._deadlines) < 2_000
    assert [r.id for r in scheduler.remove_expired(now=10.0)] == [20_000]


def test_expired_and_cancelled_requests_leave_the_queue() -> None:
    scheduler = Scheduler(100)
    for i, deadline in enumerate((5.0, 50.0, 5.0)):
        scheduler.add(request(i, deadline=deadline))
    assert [r.id for r in scheduler.remove_expired(now=5.0)] == [0, 2]
    assert scheduler.remove((b"peer", 1)) is not None
    assert scheduler.remove((b"peer", 1)) is None
    assert scheduler.next_batch(always) is None


def test_a_failed_adapter_takes_its_requests_out() -> None:
    scheduler = Scheduler(100)
    for i, digest in enumerate("abab"):
        scheduler.add(request(i, digest))
    assert [r.id for r in scheduler.remove_digest("a")] == [0, 2]
    assert [r.id for r in scheduler] == [1, 3]
