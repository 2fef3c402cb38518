"""Virtual token counters by themselves."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adamix_server.engine.token_counters import REBASED_AT, TokenCounters

TENANTS = st.sampled_from("abcdef")
WEIGHTS = st.dictionaries(TENANTS, st.sampled_from([2.0, 3.0, 1000.0]))


class Machine(RuleBasedStateMachine):
    """Tenants come, go, are charged and reweighted; a plain dictionary says what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.counters = TokenCounters()
        self.weights: dict[str, float] = {}
        self.active: set[str] = set()

    @rule(tenant=TENANTS)
    def enter(self, tenant: str) -> None:
        if tenant in self.active:
            return
        floor, had = self.counters.floor, self.counters.get(tenant)
        before = None if had is None else had.value
        counter = self.counters.enter(tenant)
        self.active.add(tenant)
        # Lifted, and what it is ahead stays.
        assert counter.value == max(floor, before if before is not None else floor)

    @rule(tenant=TENANTS)
    def leave(self, tenant: str) -> None:
        if tenant in self.active:
            self.active.discard(tenant)
            counter = self.counters.get(tenant)
            assert counter is not None
            self.counters.leave(counter)

    @rule(tenant=TENANTS, tokens=st.integers(1, 10_000))
    def charge(self, tenant: str, tokens: int) -> None:
        before = self.counters.get(tenant)
        value = max(self.counters.floor, before.value if before is not None else 0.0)
        self.counters.charge(tenant, tokens)
        after = self.counters.get(tenant)
        if after is None:
            assert not self.active
        else:
            assert after.value == value + tokens / self.weights.get(tenant, 1.0)

    @rule(weights=WEIGHTS)
    def reweight(self, weights: dict[str, float]) -> None:
        floor = self.counters.floor
        known = {tenant: c for tenant in "abcdef" if (c := self.counters.get(tenant))}
        ahead = {tenant: max(c.value - floor, 0.0) * c.weight for tenant, c in known.items()}
        self.counters.set_weights(weights)
        self.weights = weights
        for tenant, tokens in ahead.items():
            if (counter := self.counters.get(tenant)) is None:
                assert tokens == 0
                continue
            assert abs((counter.value - floor) * counter.weight - tokens) <= 1e-6 * max(tokens, 1.0)

    @rule(take=st.booleans())
    def turn(self, take: bool) -> None:
        first = self.counters.first()
        if first is None:
            return
        if take:
            self.counters.charge(first.tenant, 64)
        else:
            self.counters.set_aside(first)
            second = self.counters.first()
            assert second is not first
            if second is not None:
                assert second.value >= first.value
            # Who is set aside could run all the same: nobody is lifted past it.
            assert self.counters.floor <= first.value
            self.counters.restore()

    @invariant()
    def the_smallest_is_first(self) -> None:
        first = self.counters.first()
        if not self.active:
            assert first is None
            assert len(self.counters) == 0
            return
        assert first is not None
        values = {tenant: c.value for tenant in self.active if (c := self.counters.get(tenant))}
        assert set(values) == self.active
        assert first.value == min(values.values()) == self.counters.floor
        assert self.counters.until() <= min((v for t, v in values.items() if t != first.tenant), default=float("inf"))
        assert self.counters.active_weight == sum(self.weights.get(tenant, 1.0) for tenant in self.active)

    @rule()
    def who_is_neither_active_nor_ahead_is_forgotten(self) -> None:
        self.counters.restore()
        for tenant in "abcdef":
            counter = self.counters.get(tenant)
            if counter is not None and not counter.is_active:
                assert counter.value > self.counters.floor


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6))
def test_counters_begin_anew_before_a_token_could_no_longer_be_told(lead: list[int]) -> None:
    counters = TokenCounters()
    names = [str(number) for number in range(len(lead))]
    for name in names:
        counters.enter(name)
    for name in names:
        counters.charge(name, REBASED_AT)
    for name, tokens in zip(names, lead, strict=True):
        counters.charge(name, tokens)
    counters.restore()
    values = {name: counter.value for name in names if (counter := counters.get(name))}
    assert counters.floor == 0.0
    assert values == {name: tokens - min(lead) for name, tokens in zip(names, lead, strict=True)}


def test_who_was_ahead_and_is_no_longer_is_lifted() -> None:
    counters = TokenCounters()
    counters.enter("stays")
    counter = counters.enter("back")
    counters.charge("back", 100)
    counters.leave(counter)
    counters.charge("stays", 5000)
    assert counters.enter("back").value == 5000


def test_heaps_do_not_grow_with_those_who_come_and_go() -> None:
    counters = TokenCounters()
    counters.enter("stays")
    for _ in range(10_000):
        counter = counters.enter("comes and goes")
        counters.charge("comes and goes", 1)
        counters.leave(counter)
    assert len(counters._active) < 100
    assert len(counters._ahead) < 100
