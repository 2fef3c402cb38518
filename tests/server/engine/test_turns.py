"""Turns among tenants: shares by weight, nobody starves, nothing is idle while something could run.

`Backlog` drives a scheduler without an engine around it: it keeps tenants' queues as deep as it is told, and counts
what each was given.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix_server.access.quotas import Shares
from adamix_server.channel.engine_frames import Row
from adamix_server.engine.request import Batch, Request, Status
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.scheduler import Scheduler
from adamix_server.engine.service_classes import OWED

BUDGET = 1024
LONGEST = 128
# So fast that a short batch is a full one.
FAST = 1e9


def always(_: str) -> bool:
    return True


class Backlog:
    """A scheduler, and what each tenant was given."""

    def __init__(self, budget: int = BUDGET, weights: dict[str, int] | None = None) -> None:
        self.scheduler = Scheduler(budget)
        self.weights = weights or {}
        self.scheduler.set_shares({tenant: Shares(weight=weight) for tenant, weight in self.weights.items()})
        self.queued: Counter[str] = Counter()
        self.given: Counter[str] = Counter()
        self._ids = itertools.count()

    def add(self, tenant: str, tokens: int, digest: str = "", *, at: float = 0.0, peer: bytes = b"peer") -> Request:
        row = Row(id=next(self._ids), tenant=tenant, digest=digest or tenant, token_ids=bytes(4 * tokens), deadline=1e9)
        request = Request(row, peer, arrived=at, hold=Hold(row.digest, since=at))
        self.scheduler.add(request)
        self.queued[tenant] += tokens
        return request

    def keep(self, tenant: str, depth: int, size: Callable[[], int], digest: Callable[[], str] = lambda: "") -> None:
        """Fill a tenant's queue up to so many tokens."""
        while self.queued[tenant] < depth:
            self.add(tenant, size(), digest())

    def run(self, is_ready: Callable[[str], bool] = always, *, now: float = 0.0, rate: float = FAST) -> list[Request]:
        """One batch."""
        batch = self.scheduler.next_batch(is_ready, now, rate)
        if batch is None:
            return []
        for request in batch.requests:
            self.given[request.row.tenant] += request.num_tokens
            self.queued[request.row.tenant] -= request.num_tokens
            self.scheduler.end(request)
        return list(batch.requests)

    def steps_until(self, request: Request, most: int) -> int:
        """Batches until a request has run."""
        for number in range(1, most + 1):
            self.run()
            if request.status is Status.ENDED:
                return number
        raise AssertionError(f"not within {most} batches")


def tokens_of(requests: Iterable[Request]) -> int:
    return sum(request.num_tokens for request in requests)


# --- one tenant alone: the rule that was before there were several


def alone(queue: list[Request], ready: set[str], budget: int) -> list[Request]:
    """Of requests, oldest first, the batch by the older rule: oldest to half, the same adapters, oldest again."""
    chosen: list[Request] = []

    def fill(candidates: Iterable[Request], limit: int) -> Iterable[Request]:
        rest, misses = iter(candidates), 0
        while tokens_of(chosen) < limit and misses < 32 and (request := next(rest, None)) is not None:
            if request in chosen:
                continue
            if chosen and tokens_of(chosen) + request.num_tokens > budget:
                misses += 1
                continue
            chosen.append(request)
        return rest

    waiting = fill((request for request in queue if request.row.digest in ready), budget // 2)
    digests = dict.fromkeys(request.row.digest for request in chosen)
    fill([request for digest in digests for request in queue if request.row.digest == digest], budget)
    fill(waiting, budget)
    return list(Batch.of(chosen).requests)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 200)), min_size=1, max_size=90),
    st.lists(st.sets(st.sampled_from("abcdefgh")), min_size=1, max_size=20),
    st.integers(16, 256),
)
def test_one_tenant_alone_gets_the_batches_of_the_older_rule(
    rows: list[tuple[str, int]], readiness: list[set[str]], budget: int
) -> None:
    backlog = Backlog(budget)
    queue: list[Request] = []
    arriving = iter(rows)
    for ready in [*readiness, *[set("abcdefgh")] * 100]:
        # Some arrive between any two batches, and adapters come and go.
        queue += [backlog.add("default", tokens, digest) for digest, tokens in itertools.islice(arriving, 9)]
        expected = alone(queue, ready, budget)
        assert backlog.run(ready.__contains__) == expected
        queue = [request for request in queue if request not in expected]
    assert not queue


# --- shares


@pytest.mark.parametrize("seed", range(25))
def test_what_tenants_with_a_backlog_get_differs_from_their_weights_by_less_than_a_batch(seed: int) -> None:
    rng = random.Random(seed)
    weights = {f"t{number}": rng.choice((1, 1, 2, 4)) for number in range(rng.randint(2, 12))}
    adapters = {
        tenant: [rng.choice("abcdef") if rng.random() < 0.5 else f"{tenant}{i}" for i in range(rng.choice((1, 3, 50)))]
        for tenant in weights
    }
    backlog = Backlog(weights=weights)
    total = sum(weights.values())
    for _ in range(40):
        for tenant in weights:
            backlog.keep(
                tenant,
                3 * BUDGET,
                lambda: rng.randint(4, LONGEST),
                lambda tenant=tenant: rng.choice(adapters[tenant]),  # type: ignore[misc]
            )
        assert tokens_of(backlog.run()) > BUDGET - LONGEST
        for tenant, weight in weights.items():
            share = weight / total
            assert abs(backlog.given[tenant] - share * backlog.given.total()) <= share * BUDGET + LONGEST


def test_a_flood_in_the_adapter_of_others_gets_its_share() -> None:
    rng = random.Random(0)
    backlog = Backlog()
    for _ in range(100):
        for tenant in ("flood", "a", "b"):
            # The batch needs this adapter in any case, so that locality favours the flood.
            backlog.keep(tenant, 4000, lambda: rng.randint(4, LONGEST), lambda: rng.choice("abcdefgh"))
        backlog.keep("flood", 30_000, lambda: rng.randint(4, LONGEST), lambda: "a")
        backlog.run()
    for tenant in ("flood", "a", "b"):
        assert backlog.given[tenant] == pytest.approx(backlog.given.total() / 3, rel=0.02)


queues = st.lists(
    st.tuples(st.sampled_from(["p", "q", "r", "s"]), st.sampled_from("abcdef"), st.integers(1, 300)),
    min_size=1,
    max_size=80,
)
some_shares = st.dictionaries(
    st.sampled_from(["p", "q", "r", "s"]),
    st.builds(
        lambda weight, service_class: Shares(weight=weight, service_class=service_class),
        st.sampled_from([1, 2, 7, 1000]),
        st.sampled_from(["interactive", "batch"]),
    ),
)


@settings(max_examples=60)
@given(queues, some_shares, st.integers(16, 256), st.data())
def test_everything_runs_once_whatever_becomes_of_weights_classes_and_adapters(
    rows: list[tuple[str, str, int]], shares: dict[str, Shares], budget: int, data: st.DataObject
) -> None:
    backlog = Backlog(budget)
    left = {backlog.add(tenant, tokens, digest) for tenant, digest, tokens in rows}
    while left:
        backlog.scheduler.set_shares(data.draw(some_shares))
        if data.draw(st.integers(0, 4)) == 0:
            cancelled = data.draw(st.sampled_from(sorted(left, key=lambda request: request.number)))
            backlog.scheduler.end(cancelled)
            left.remove(cancelled)
        ready = data.draw(st.sets(st.sampled_from("abcdef")))
        could_run = any(request.row.digest in ready for request in left)
        assert backlog.scheduler.can_run(ready.__contains__) >= could_run
        batch = backlog.run(ready.__contains__)
        # Work conserving: some could run, so some do.
        assert bool(batch) is could_run
        assert {request.row.digest for request in batch} <= ready
        assert tokens_of(batch) <= budget or len(batch) == 1
        assert left.issuperset(batch)
        left.difference_update(batch)
        assert backlog.scheduler.queued_tokens == tokens_of(left) == tokens_of(backlog.scheduler)
        tokens: Counter[str] = Counter()
        for request in left:
            tokens[request.row.tenant] += request.num_tokens
        assert backlog.scheduler.tokens_by_tenant() == tokens
        if not left or data.draw(st.integers(0, 3)) == 0:
            continue
        backlog.scheduler.set_shares(shares)
        state = backlog.scheduler.state(b"peer", 7.0)
        of_class = {tenant for tenant, share in shares.items() if share.service_class == "batch"}
        assert state.batch_tokens == sum(tokens[tenant] for tenant in of_class)
        assert state.active_weight == sum(shares.get(tenant, Shares()).weight for tenant in tokens)
        assert (state.queued_tokens, state.tenants) == (tokens.total(), tokens)
    assert backlog.scheduler.next_batch(always, 0.0, FAST) is None


@settings(max_examples=40)
@given(queues, st.integers(300, 600))
def test_a_batch_has_room_for_nothing_that_is_left_and_oldest(rows: list[tuple[str, str, int]], budget: int) -> None:
    backlog = Backlog(budget)
    for tenant, digest, tokens in rows:
        backlog.add(tenant, tokens, digest)
    while batch := backlog.run():
        oldest = {request.row.tenant: request for request in reversed(list(backlog.scheduler))}
        assert all(tokens_of(batch) + request.num_tokens > budget for request in oldest.values())


@settings(max_examples=40)
@given(queues, st.integers(16, 256))
def test_within_a_tenant_and_an_adapter_the_order_is_that_of_arrival(
    rows: list[tuple[str, str, int]], budget: int
) -> None:
    backlog = Backlog(budget)
    for tenant, digest, _ in rows:
        backlog.add(tenant, 5, digest)
    seen: list[Request] = []
    while batch := backlog.run():
        seen += batch
    for _, group in itertools.groupby(sorted(seen, key=_line), key=_line):
        numbers = [request.number for request in group]
        assert numbers == sorted(numbers)


def _line(request: Request) -> tuple[str, str]:
    return request.row.tenant, request.row.digest


def test_the_order_is_the_same_whenever_it_is_asked() -> None:
    def order() -> list[list[int]]:
        rng = random.Random(5)
        backlog = Backlog(weights={"t1": 3})
        batches = []
        for _ in range(30):
            for tenant in ("t2", "t0", "t1"):
                backlog.keep(tenant, 3000, lambda: rng.randint(1, LONGEST), lambda: rng.choice("abcdefgh"))
            batches.append([request.row.id for request in backlog.run()])
        return batches

    assert order() == order()


def test_of_equal_counters_who_has_been_active_for_longer_is_first() -> None:
    backlog = Backlog(budget=20)
    for tenant in ("z", "y", "x"):
        backlog.add(tenant, 20)
    assert [backlog.run()[0].row.tenant for _ in range(3)] == ["z", "y", "x"]


# --- nobody starves


def test_a_tenant_with_one_call_waits_for_one_batch_beside_any_flood() -> None:
    rng = random.Random(1)
    backlog = Backlog()
    for _ in range(50):
        backlog.keep("flood", 60_000, lambda: rng.randint(4, LONGEST), lambda: f"f{rng.randrange(1000)}")
        call = backlog.add("light", 64)
        assert call in backlog.run()


def test_every_request_runs_after_what_its_tenant_and_fair_shares_of_others_take() -> None:
    rng = random.Random(2)
    tenants = [f"t{number}" for number in range(10)]
    backlog = Backlog()
    for _ in range(20):
        for tenant in tenants:
            backlog.keep(tenant, 3000, lambda: rng.randint(4, LONGEST), lambda: rng.choice("abcdefghijkl"))
        last = max(backlog.scheduler, key=lambda request: request.number)
        # Ten queues of 3,000 tokens are 30 batches. Whoever has a turn later than that was passed over.
        waited = 0
        while last.status is Status.QUEUED:
            for tenant in tenants:
                backlog.keep(tenant, 3000, lambda: rng.randint(4, LONGEST), lambda: rng.choice("abcdefghijkl"))
            backlog.run()
            waited += 1
            assert waited <= 36


@pytest.mark.parametrize("digest", ["", "one"])
def test_shorter_requests_of_a_tenant_do_not_pass_its_oldest_for_ever(digest: str) -> None:
    backlog = Backlog()
    backlog.keep("b", 4000, lambda: 64, lambda: digest)
    backlog.run()
    # From here on "b" is first in every batch: counters are equal at its end, and it has been active for longer.
    oldest = backlog.add("a", 1000, digest)
    for _ in range(12):
        backlog.keep("b", 4000, lambda: 64, lambda: digest)
        backlog.keep("a", 8000, lambda: 16, lambda: digest)
        assert oldest not in backlog.run()
    for _ in range(12):
        backlog.keep("b", 4000, lambda: 64, lambda: digest)
        backlog.keep("a", 8000, lambda: 16, lambda: digest)
        backlog.run()
    assert oldest.status is Status.ENDED


def test_a_request_that_is_too_long_does_not_end_its_tenants_turn() -> None:
    backlog = Backlog(budget=100)
    backlog.add("a", 60)
    backlog.add("b", 90)
    shorter = backlog.add("b", 40)
    assert shorter in backlog.run()


# --- away and back


def test_time_away_saves_up_nothing() -> None:
    backlog = Backlog()
    for _ in range(500):
        backlog.keep("busy", 4000, lambda: 64)
        backlog.run()
    backlog.given.clear()
    for _ in range(20):
        backlog.keep("busy", 4000, lambda: 64)
        backlog.keep("back", 4000, lambda: 64)
        backlog.run()
    assert abs(backlog.given["back"] - backlog.given["busy"]) <= BUDGET


def test_who_waits_for_an_adapter_saves_up_nothing_and_is_not_waited_for() -> None:
    backlog = Backlog()
    ready: set[str] = {"here"}
    for _ in range(100):
        backlog.keep("here", 4000, lambda: 64)
        backlog.keep("loads", 4000, lambda: 64)
        assert tokens_of(backlog.run(ready.__contains__)) == BUDGET
    assert backlog.given["loads"] == 0
    backlog.given.clear()
    ready.add("loads")
    for _ in range(20):
        backlog.keep("here", 4000, lambda: 64)
        backlog.keep("loads", 4000, lambda: 64)
        backlog.run(ready.__contains__)
    assert abs(backlog.given["loads"] - backlog.given["here"]) <= BUDGET


def test_an_adapter_that_loses_its_slot_gives_no_turn_until_it_is_ready_again() -> None:
    backlog = Backlog(budget=64)
    first, second = backlog.add("a", 64), backlog.add("a", 64)
    assert backlog.run() == [first]
    assert backlog.run("b".__eq__) == []
    assert not backlog.scheduler.can_run("b".__eq__)
    backlog.add("b", 64)
    assert backlog.run("b".__eq__)[0].row.tenant == "b"
    third = backlog.add("a", 64)
    assert [backlog.run() for _ in range(2)] == [[second], [third]]


def test_requests_that_waited_for_their_adapter_come_before_younger_ones() -> None:
    backlog = Backlog(budget=10)
    late = [backlog.add("a", 10, "slow") for _ in range(2)]
    early = [backlog.add("a", 10, "fast") for _ in range(3)]
    late.append(backlog.add("a", 10, "slow"))
    assert backlog.run("fast".__eq__) == [early[0]]
    assert [backlog.run()[0] for _ in range(5)] == [*late[:2], *early[1:], late[2]]


# --- weights that change


def test_a_weight_that_rises_a_thousandfold_costs_nobody_more_than_its_share() -> None:
    backlog = Backlog()
    for _ in range(50):
        for tenant in ("a", "b", "c"):
            backlog.keep(tenant, 8000, lambda: 64)
        backlog.run()
    backlog.scheduler.set_shares({"a": Shares(weight=1000)})
    backlog.given.clear()
    for _ in range(100):
        for tenant in ("a", "b", "c"):
            backlog.keep(tenant, 8000, lambda: 64)
        backlog.run()
    total = backlog.given.total()
    assert backlog.given["a"] == pytest.approx(total * 1000 / 1002, abs=BUDGET)
    # And back: what it was given at its former weight is not held against it.
    backlog.scheduler.set_shares({})
    backlog.given.clear()
    for _ in range(30):
        for tenant in ("a", "b", "c"):
            backlog.keep(tenant, 8000, lambda: 64)
        backlog.run()
    for tenant in ("a", "b", "c"):
        assert abs(backlog.given[tenant] - backlog.given.total() / 3) <= BUDGET


def test_a_tenant_that_changes_its_class_takes_its_queue_along() -> None:
    backlog = Backlog(budget=64)
    first, second = backlog.add("a", 64), backlog.add("a", 64)
    backlog.run()
    other = backlog.add("b", 64, at=0.0)
    backlog.scheduler.set_shares({"a": Shares(service_class="batch")})
    assert first.status is Status.ENDED
    assert [backlog.run() for _ in range(2)] == [[other], [second]]


# --- classes


def test_the_batch_class_is_owed_a_twentieth_of_all_tokens() -> None:
    rng = random.Random(3)
    backlog = Backlog()
    backlog.scheduler.set_shares({"batch": Shares(service_class="batch")})
    window: list[tuple[int, int]] = []
    for _ in range(400):
        backlog.keep("interactive", 8000, lambda: rng.randint(4, LONGEST))
        backlog.keep("batch", 8000, lambda: rng.randint(4, 512))
        batch = backlog.run()
        window.append((tokens_of(r for r in batch if r.row.tenant == "batch"), tokens_of(batch)))
    # What 5 s are at 7,500 tokens a second.
    for begin in range(len(window) - 36):
        own, total = map(sum, zip(*window[begin : begin + 36], strict=True))
        assert own >= 0.05 * total - 512
    assert backlog.given["batch"] == pytest.approx(OWED * backlog.given.total(), rel=0.03)


def test_long_requests_of_the_batch_class_one_at_a_time_get_no_more_than_they_are_owed() -> None:
    backlog = Backlog()
    backlog.scheduler.set_shares({"batch": Shares(service_class="batch")})
    for number in range(400):
        backlog.keep("interactive", 8000, lambda: 64)
        if number % 3 == 0:
            backlog.keep("batch", 1, lambda: 512)
        backlog.run()
    assert backlog.given["batch"] <= OWED * backlog.given.total() + 512


def test_beside_interactive_work_the_batch_class_fills_short_batches_and_alone_full_ones() -> None:
    backlog = Backlog()
    backlog.scheduler.set_shares({"batch": Shares(service_class="batch")})
    backlog.keep("batch", 20_000, lambda: 32)
    assert tokens_of(backlog.run(now=10.0)) == BUDGET
    call = backlog.add("interactive", 32, at=10.0)
    batch = backlog.run(now=10.0)
    assert call in batch
    assert tokens_of(batch) == 128
    # The next call may come at any moment.
    assert tokens_of(backlog.run(now=11.0)) == 256
    assert tokens_of(backlog.run(now=11.01)) == BUDGET


def test_nothing_is_owed_to_who_could_not_run() -> None:
    backlog = Backlog()
    backlog.scheduler.set_shares({"batch": Shares(service_class="batch")})
    backlog.add("batch", 64, "loads")
    # It waits for its adapter: nothing is owed to it meanwhile.
    for _ in range(200):
        backlog.keep("interactive", 8000, lambda: 64)
        backlog.run("interactive".__eq__)
    backlog.given.clear()
    for _ in range(20):
        backlog.keep("interactive", 8000, lambda: 64)
        backlog.keep("batch", 8000, lambda: 64, lambda: "loads")
        backlog.run()
    assert backlog.given["batch"] <= OWED * backlog.given.total() + 64


def test_what_is_left_of_the_batch_class_alone_does_not_mean_that_the_engine_is_behind() -> None:
    backlog = Backlog()
    backlog.scheduler.set_shares({"batch": Shares(service_class="batch")})
    backlog.keep("batch", 20_000, lambda: 32)
    backlog.keep("interactive", 2000, lambda: 32)
    assert tokens_of(backlog.run()) == BUDGET
    assert backlog.scheduler.is_behind
    assert backlog.run()
    assert not backlog.scheduler.is_behind
    assert backlog.scheduler.can_run(always)


# --- short batches


RATE = 7500.0
SHORT = 300  # 40 ms of it


def test_batches_are_short_while_a_light_tenant_is_beside_one_with_much_queued() -> None:
    backlog = Backlog()
    backlog.keep("hog", 20_000, lambda: 10)
    assert tokens_of(backlog.run(rate=RATE)) > SHORT  # alone it takes nothing from anybody
    backlog.add("light", 10)
    assert tokens_of(backlog.run(now=0.5, rate=RATE)) == SHORT
    # It has nothing queued now, and may ask again within the second.
    assert tokens_of(backlog.run(now=0.5, rate=RATE)) == SHORT
    assert tokens_of(backlog.run(now=2.0, rate=RATE)) > SHORT


def test_a_short_batch_is_shorter_than_a_full_one_and_no_shorter_than_a_text() -> None:
    for rate, expected in ((1e9, 1020), (10.0, 60)):
        backlog = Backlog()
        backlog.keep("hog", 20_000, lambda: 10)
        backlog.add("light", 10)
        assert tokens_of(backlog.run(rate=rate)) == expected


def test_batches_are_full_under_plain_overload() -> None:
    rng = random.Random(4)
    tenants = [f"t{number}" for number in range(8)]
    backlog = Backlog()
    for _ in range(50):
        for tenant in tenants:
            backlog.keep(tenant, 5000, lambda: rng.randint(4, LONGEST))
        assert tokens_of(backlog.run(rate=RATE)) > BUDGET - LONGEST


def test_who_has_less_than_two_batches_queued_is_no_hog() -> None:
    backlog = Backlog()
    backlog.keep("busy", 2 * BUDGET, lambda: 64)
    backlog.add("light", 64)
    assert tokens_of(backlog.run(rate=RATE)) == BUDGET


def test_what_waits_for_an_adapter_makes_no_hog() -> None:
    backlog = Backlog()
    backlog.add("light", 64)
    assert backlog.run(rate=RATE)
    # It has nothing queued, and may ask again.
    backlog.keep("loads", 20_000, lambda: 64)
    backlog.keep("other", BUDGET, lambda: 64)
    assert tokens_of(backlog.run("other".__eq__, rate=RATE)) == BUDGET
    backlog.keep("other", BUDGET, lambda: 64)
    assert tokens_of(backlog.run(rate=RATE)) <= SHORT


# --- what is remembered


def test_thousands_of_tenants_with_one_call_each_leave_nothing_behind() -> None:
    backlog = Backlog()
    now = 0.0
    for number in range(4000):
        now += 0.01
        backlog.keep("busy", 4000, lambda: 64)
        backlog.add(f"t{number}", 64, at=now)
        backlog.run(now=now)
    for _ in range(3):
        backlog.keep("busy", 4000, lambda: 64)
        backlog.run(now=now + 2.0)
    counters = backlog.scheduler._classes.interactive.counters
    assert len(counters) == 1
    assert len(backlog.scheduler._tenants) == 1
    assert len(counters._ahead) < 100
    assert len(counters._active) < 200


def test_a_front_end_is_told_of_its_own_tenants_and_of_many_only_those_that_changed() -> None:
    backlog = Backlog()
    for number in range(64):
        backlog.add(f"t{number}", 5, peer=b"one")
    backlog.add("both", 7, peer=b"one")
    backlog.add("both", 8, peer=b"two")
    assert backlog.scheduler.state(b"two", 1.0).tenants == {"both": 15}
    assert backlog.scheduler.state(b"three", 1.0).tenants == {}
    assert backlog.scheduler.state(b"one", 1.0, ["t7", "gone"]).tenants == {"t7": 5, "gone": 0}


def test_generated_tokens_count_twice() -> None:
    backlog = Backlog()
    for tenant in ("a", "b"):
        backlog.keep(tenant, 30_000, lambda: 64)
    backlog.run()
    backlog.scheduler.charge_generated("a", 500)
    backlog.given.clear()
    for _ in range(20):
        backlog.run()
    assert backlog.given["b"] - backlog.given["a"] == pytest.approx(1000, abs=128)
