"""A lender and several front ends: nobody gets more than there is, and what there is is given out."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix_server.access.borrowing import Borrower, Limit, Part, Refusal, Waiting
from adamix_server.access.leases import Ask, Flow, Lender, Loan, joined
from adamix_server.limits.quotas import LEASE_S, LENDER_SILENCE_S, SLOT_WAIT_S

TOKENS = ("acme", "input_tokens_per_s")
CALLS = ("acme", "concurrent_calls")
LATENCY_S = 0.001
TIDY_S = 0.05


class Turn(Waiting):
    """Somebody who waits, and what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[Refusal | None] = []

    def settle(self, refusal: Refusal | None) -> None:
        self.outcomes.append(refusal)

    @property
    def is_admitted(self) -> bool:
        return self.outcomes == [None]


@dataclass
class World:
    """Front ends and a lender on one simulated clock; words take a millisecond, and at most one is under way in each
    direction of each front end: what is said meanwhile is said together.
    """

    count: int
    now: float = 0.0
    is_lender_awake: bool = True
    lender: Lender = field(default_factory=Lender)
    front_ends: dict[str, Borrower] = field(default_factory=dict)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    order: "itertools.count[int]" = field(default_factory=itertools.count)
    said: dict[str, list[Ask]] = field(default_factory=dict)
    frames: int = 0

    def __post_init__(self) -> None:
        for number in range(self.count):
            self.front_ends[str(number)] = Borrower(number, self.count)
        self.at(TIDY_S, self.tidy)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
            self.flush()
        self.now = max(self.now, until)

    def take(self, name: str, key: tuple[str, str], limit: Limit, units: float = 1.0) -> Turn:
        """A call that wants units; how it ends stands in what is returned."""
        turn = Turn()
        outcome = self.front_ends[name].take(key, limit, units, self.now, turn)
        if outcome is not turn:
            assert not isinstance(outcome, Waiting)
            turn.settle(outcome)
        self.flush()
        return turn

    def give(self, name: str, key: tuple[str, str], units: float = 1.0) -> None:
        self.front_ends[name].give(key, units, self.now)
        self.flush()

    def tidy(self) -> None:
        for front_end in self.front_ends.values():
            front_end.tidy(self.now)
        self.at(self.now + TIDY_S, self.tidy)

    def kill(self, name: str) -> None:
        del self.front_ends[name]
        self.said.pop(name, None)
        self.post(self.lender.left(name, self.now))

    def flush(self) -> None:
        for name, front_end in self.front_ends.items():
            if front_end.has_said:
                if not self.said.get(name):
                    self.at(self.now + LATENCY_S, lambda name=name: self.deliver(name))  # type: ignore[misc]
                self.said[name] = joined(self.said.get(name, []), front_end.said())

    def deliver(self, name: str) -> None:
        """The lender reads what a front end has said, if it reads at all."""
        if not self.is_lender_awake:
            self.at(self.now + LATENCY_S, lambda: self.deliver(name))
            return
        asks = self.said.pop(name, [])
        self.frames += 1
        self.post(self.lender.ask(name, asks, self.now))

    def post(self, letters: list[tuple[str, Loan]]) -> None:
        for name, loan in letters:
            self.at(self.now + LATENCY_S, lambda name=name, loan=loan: self.hear(name, loan))  # type: ignore[misc]
        if (looks_at := self.lender.looks_at) is not None:
            self.at(max(looks_at, self.now), self.look)

    def look(self) -> None:
        if self.is_lender_awake:
            self.post(self.lender.look(self.now))

    def hear(self, name: str, loan: Loan) -> None:
        if name in self.front_ends:
            self.front_ends[name].lent([loan], self.now)


def simulate(
    demand: float,
    *,
    rate: float,
    seconds: float,
    seed: int,
    most: int = 64,
    shares: tuple[float, ...] = (0.8, 0.15, 0.05),
) -> tuple[float, float, World]:
    """Tokens that were asked for and admitted, at so many times the rate: calls of 1 to `most` tokens."""
    world, draw = World(len(shares)), random.Random(seed)
    turns: list[tuple[int, Turn]] = []
    calls_per_s = demand * rate / ((1 + most) / 2)

    def arrive() -> None:
        (number,) = draw.choices(range(len(shares)), shares)
        units = draw.randint(1, most)
        turns.append((units, world.take(str(number), TOKENS, Flow(rate, rate), units)))
        world.at(world.now + draw.expovariate(calls_per_s), arrive)

    world.at(0.0, arrive)
    world.run(seconds)
    asked = float(sum(units for units, _ in turns))
    admitted = float(sum(units for units, turn in turns if turn.is_admitted))
    return asked, admitted, world


def test_a_rate_over_three_front_ends_is_kept_and_used_for_a_minute() -> None:
    # The table: skew 80/15/5, 60 s.
    rate = 2_000.0
    _, admitted, _ = simulate(2.0, rate=rate, seconds=60, seed=1)
    most = rate * 60 + rate + 3 * LEASE_S * rate
    assert 0.99 * rate * 60 <= admitted <= most
    asked, admitted, world = simulate(0.9, rate=rate, seconds=60, seed=2)
    assert admitted >= 0.99 * asked
    # Slices are asked for, and not each call: there were more than 3,000 of them.
    assert world.frames < 1_600


@settings(max_examples=8, deadline=None)
@given(
    demand=st.floats(0.5, 20),
    rate=st.floats(50, 20_000),
    most=st.integers(1, 64),
    seed=st.integers(0, 99),
    shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=5).map(tuple),
)
def test_the_sum_over_front_ends_never_exceeds_the_rate_whatever_the_skew(
    demand: float, rate: float, most: int, seed: int, shares: tuple[float, ...]
) -> None:
    seconds = min(5.0, 40_000 / (demand * rate))
    asked, admitted, _ = simulate(demand, rate=rate, seconds=seconds, seed=seed, most=most, shares=shares)
    leases = len(shares) * LEASE_S * rate
    assert admitted <= rate * seconds + rate + most
    assert admitted >= min(asked, rate * seconds) - rate - leases - most


def test_a_front_end_holds_a_tenth_of_a_second_and_gives_it_back_when_it_is_idle() -> None:
    world, limit = World(2), Flow(1_000.0, 1_000.0)
    turn = world.take("0", TOKENS, limit, 50)
    assert turn.outcomes == []  # It asks, and waits as long as a word there and back takes.
    world.run(2 * LATENCY_S)
    assert turn.is_admitted
    # 50 and a lease of 100 were lent, so the other gets what is left, and nothing more.
    assert world.take("0", TOKENS, limit, 50).is_admitted
    world.run(0.01)
    assert world.lender.ask("1", [ask(limit, first=1, more=2_000)], world.now)[0][1].lent == pytest.approx(858, abs=1)
    world.run(0.01 + LEASE_S + 2 * TIDY_S)
    given = world.lender.ask("1", [ask(limit, number=2, first=1, more=2_000)], world.now)[0][1].lent
    # The lease came back, and the time's own.
    assert given == pytest.approx(50 + 1_000 * (world.now - 0.01), abs=1)
    assert world.front_ends["0"].is_idle


def ask(limit: Limit, number: int = 1, first: float = 0, more: float = 0) -> Ask:
    tenant, quota = TOKENS if isinstance(limit, Flow) else CALLS
    return Ask(tenant=tenant, quota=quota, limit=limit, number=number, first=first, more=more)


def test_what_is_asked_for_ahead_is_there_when_it_is_wanted_and_never_the_last() -> None:
    world, limit = World(2), Flow(1_000.0, 1_000.0)
    assert world.front_ends["0"].look(TOKENS, limit, world.now) is None
    world.flush()
    world.run(2 * LATENCY_S)
    assert world.take("0", TOKENS, limit, 100).is_admitted  # at once
    # Of the last, nothing is held back: a call of any size gets in, and is paid for afterwards.
    world.run(0.01)
    assert world.lender.ask("1", [ask(limit, first=760)], world.now)[0][1].lent == 760
    other = Flow(10.0, 30.0)
    assert world.lender.ask("1", [ask(other, first=29.0)], world.now)[0][1].lent == 29
    assert world.lender.ask("1", [ask(other, number=2, more=1.0)], world.now)[0][1] == Loan(
        tenant=TOKENS[0], quota=TOKENS[1], number=2
    )
    assert world.lender.ask("1", [ask(other, number=3, first=50)], world.now)[0][1].lent == 50


def test_a_refusal_says_exactly_when_the_next_call_is_admitted() -> None:
    world, limit = World(3), Flow(100.0, 100.0)
    world.take("0", TOKENS, limit, 400)
    world.run(0.01)
    refused = world.take("1", TOKENS, limit, 5)
    world.run(0.02)
    (refusal,) = refused.outcomes
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(2.99, abs=0.01)
    assert refusal.used == pytest.approx(4.0, abs=0.05)
    # From then on it is refused without asking anybody.
    frames = world.frames
    again = world.take("1", TOKENS, limit, 5)
    assert again.outcomes[0] is not None
    after_s = again.outcomes[0].retry_after_s
    assert after_s is not None
    world.run(world.now + after_s)
    assert world.frames == frames
    admitted = world.take("1", TOKENS, limit, 5)
    world.run(world.now + 0.01)
    assert admitted.is_admitted


def test_a_changed_limit_counts_at_once() -> None:
    world = World(2)
    world.take("0", TOKENS, Flow(10.0, 10.0), 1_000)
    world.run(0.01)
    world.take("0", TOKENS, Flow(10.0, 10.0), 1)
    world.run(0.02)
    assert world.take("0", TOKENS, Flow(10.0, 10.0), 1).outcomes[0] is not None
    # Raised: 990 are owed, and paid in a second.
    raised = Flow(1_000.0, 1_000.0)
    world.take("0", TOKENS, raised, 1)
    world.run(1.1)
    turn = world.take("0", TOKENS, raised, 1)
    world.run(1.2)
    assert turn.is_admitted
    # 0: whatever is held.
    assert world.take("0", TOKENS, Flow(0.0, 0.0), 1).outcomes == [Refusal(None, 0.0)]
    assert world.take("0", CALLS, 0).outcomes == [Refusal(None, 0.0)]


def test_what_a_front_end_held_when_it_died_is_there_again() -> None:
    world, limit = World(2), Flow(100.0, 100.0)
    world.take("0", TOKENS, limit, 500)
    world.run(0.01)
    world.front_ends["0"].reserve(TOKENS, 500)
    world.front_ends["0"].settle(TOKENS, 500, 450, world.now)
    world.flush()
    world.run(0.02)
    world.take("0", TOKENS, limit, 100)
    world.run(0.03)
    calls = [world.take("0", CALLS, 2) for _ in range(2)]
    world.run(0.04)
    assert all(turn.is_admitted for turn in calls)
    refused = world.take("1", CALLS, 2)
    world.run(0.10)
    assert not refused.is_admitted
    world.kill("0")
    turns = [world.take("1", CALLS, 2), world.take("1", CALLS, 2), world.take("1", TOKENS, limit, 1)]
    world.run(0.15)
    assert [turn.is_admitted for turn in turns] == [True, True, True]


def test_a_limit_of_one_lets_one_at_a_time_over_all_front_ends() -> None:
    world = World(3)
    running = [name for name in "012" for _ in range(3)]
    turns = {i: world.take(name, CALLS, 1) for i, name in enumerate(running)}
    world.run(0.1)
    admitted = [i for i, turn in turns.items() if turn.is_admitted]
    assert len(admitted) == 1
    assert all(len(turn.outcomes) == 1 for turn in turns.values())
    # One after the other, each in another front end, with no time in between: nobody is refused.
    name = running[admitted[0]]
    for i in range(20):
        world.give(name, CALLS)
        name = str(i % 3)
        turn = world.take(name, CALLS, 1)
        world.run(world.now + 0.05)
        assert turn.is_admitted, i


def test_a_slot_is_kept_for_the_next_call_unless_somebody_else_needs_it() -> None:
    world = World(2)
    world.take("0", CALLS, 5)
    world.run(0.01)
    frames = world.frames
    for _ in range(10):
        world.give("0", CALLS)
        assert world.take("0", CALLS, 5).is_admitted  # at once
    assert world.frames == frames
    world.give("0", CALLS)
    others = [world.take("1", CALLS, 5) for _ in range(5)]
    world.run(0.02)
    assert all(turn.is_admitted for turn in others)


@settings(max_examples=40, deadline=None)
@given(limit=st.integers(1, 5), count=st.integers(1, 4), seed=st.integers(0, 999))
def test_there_are_never_more_at_once_than_the_limit_and_free_slots_are_found(
    limit: int, count: int, seed: int
) -> None:
    world, draw = World(count), random.Random(seed)
    running: list[str] = []
    names = [str(number) for number in range(count)]
    for _ in range(150):
        if running and draw.random() < 0.45:
            world.give(running.pop(draw.randrange(len(running))), CALLS)
        else:
            name = draw.choice(names)
            turn = world.take(name, CALLS, limit)
            was_free = len(running) < limit
            world.run(world.now + 0.03)
            assert len(turn.outcomes) == 1
            if turn.is_admitted:
                running.append(name)
            # A refusal is remembered for a moment, in which a slot may have become free.
            elif was_free:
                world.run(world.now + 0.03)
                again = world.take(name, CALLS, limit)
                world.run(world.now + 0.03)
                assert again.is_admitted
                running.append(name)
        assert len(running) <= limit


@pytest.mark.parametrize(("limit", "of"), [(1, 3), (2, 3), (7, 3), (64, 5), (0, 2)])
def test_the_parts_of_a_limit_are_the_whole(limit: int, of: int) -> None:
    assert sum(Part(number, of).slots(limit) for number in range(of)) == limit


def test_without_an_answer_each_front_end_goes_on_with_its_part() -> None:
    world, limit = World(3), Flow(300.0, 300.0)
    world.is_lender_awake = False
    turns = [world.take(name, TOKENS, limit, 10) for name in "012"]
    slots = [world.take(name, CALLS, 4) for name in "012" for _ in range(3)]
    world.run(LENDER_SILENCE_S - TIDY_S)
    assert not any(turn.outcomes for turn in turns + slots)
    world.run(LENDER_SILENCE_S + 2 * TIDY_S)
    assert all(turn.is_admitted for turn in turns)
    assert sum(turn.is_admitted for turn in slots) == 4
    # A third of the rate each, at once and for as long as it lasts.
    admitted = 0
    for _ in range(1_000):
        admitted += sum(world.take(name, TOKENS, limit, 10).is_admitted for name in "012")
        world.run(world.now + 0.01)
    assert 0.95 * 300 * 10 <= 10 * admitted <= 300 * 10 + 300 + 3 * 10
    # It answers again: what one of them needs, it gets.
    world.is_lender_awake = True
    world.run(world.now + 1.5)
    turn = world.take("0", TOKENS, limit, 250)
    world.run(world.now + 0.01)
    assert turn.is_admitted
    assert not world.front_ends["0"].is_alone


def test_who_holds_slots_and_says_nothing_is_waited_for_so_long() -> None:
    lender, word = Lender(), partial(Ask, tenant=CALLS[0], quota=CALLS[1], limit=1)
    assert lender.ask("0", [word(number=1, first=1.0)], now=0.0)[0][1].lent == 1.0
    ((name, call),) = lender.ask("1", [word(number=2, first=1.0)], now=1.0)
    assert (name, call.recall) == ("0", 1)
    assert lender.looks_at == 1.0 + SLOT_WAIT_S
    assert lender.look(1.0 + 0.99 * SLOT_WAIT_S) == []
    ((name, refusal),) = lender.look(1.0 + SLOT_WAIT_S)
    assert (name, refusal.number, refusal.lent) == ("1", 2, 0.0)
    # One that says that it uses what it has is believed at once, if it says so to this call and not to an earlier one.
    ((_, call),) = lender.ask("1", [word(number=3, first=1.0)], now=2.0)
    assert lender.ask("0", [word(recalled=1)], now=2.0) == []
    ((name, refusal),) = lender.ask("0", [word(recalled=call.recall)], now=2.0)
    assert (name, refusal.number, refusal.lent) == ("1", 3, 0.0)
    assert lender.looks_at is None


def test_who_waits_no_more_takes_nothing() -> None:
    world = World(2)
    turn = world.take("0", CALLS, 1)
    world.front_ends["0"].withdraw(CALLS, turn)
    world.run(0.01)
    assert turn.outcomes == []
    other = world.take("1", CALLS, 1)
    world.run(0.02)
    assert other.is_admitted


def test_words_that_wait_are_one_word_and_lose_nothing() -> None:
    limit = Flow(10.0, 10.0)
    first = Ask(tenant="a", quota="q", limit=limit, returned=2.0, held=5.0)
    second = Ask(tenant="a", quota="q", limit=limit, number=3, first=1.0, more=4.0, held=3.0)
    third = Ask(tenant="a", quota="q", limit=limit, returned=1.5, held=1.0)
    other = Ask(tenant="b", quota="q", limit=limit)
    (both, rest) = joined(joined([first, other], [second]), [third])
    assert both == Ask(tenant="a", quota="q", limit=limit, number=3, first=1.0, more=4.0, returned=3.5, held=1.0)
    assert rest == other
    loans = [
        Loan(tenant="a", quota="q", number=1, lent=2.0),
        Loan(tenant="a", quota="q", recall=3),
        Loan(tenant="a", quota="q", number=2, opens_at=7.0),
    ]
    (loan,) = joined((), loans)
    assert loan == Loan(tenant="a", quota="q", number=2, lent=2.0, opens_at=7.0, recall=3)


def test_the_lender_forgets_what_is_at_rest() -> None:
    lender = Lender()
    for i in range(1_000):
        word = Ask(tenant=f"t{i}", quota="q", limit=Flow(10.0, 10.0), number=1, first=1.0)
        lender.ask("0", [word], now=float(i))
        lender.ask("0", [Ask(tenant=f"t{i}", quota="q", limit=Flow(10.0, 10.0))], now=float(i))
    assert len(lender._rates) <= 64
    lender.ask("0", [ask(3, first=1)], now=0.0)
    lender.ask("0", [Ask(tenant=CALLS[0], quota=CALLS[1], limit=3, returned=1.0)], now=1.0)
    assert not lender._slots
