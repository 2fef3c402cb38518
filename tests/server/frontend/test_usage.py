"""What callers use: every call, token and refusal is counted once, and told once."""

from concurrent.futures import ThreadPoolExecutor

from adamix_server.access.principal import ANYONE, NOBODY, Principal
from adamix_server.access.sums import Sums
from adamix_server.frontend.usage import Meter
from adamix_server.limits.audit import MAX_COUNTED_TENANTS


def test_it_is_summed_by_tenant() -> None:
    meter = Meter()
    for _ in range(3):
        meter.called(Principal("keys/k1", "acme", frozenset(), key_id="k1"))
    meter.called(ANYONE)
    meter.computed("acme", 5)
    meter.computed("acme", 7, 2)
    meter.rejected("acme", "A")
    meter.rejected("acme", "A", 3)
    meter.rejected("acme", "B")
    usage, keys = meter.drain()
    assert sorted(usage, key=lambda sums: sums.tenant) == [
        Sums(tenant="acme", calls=3, input_tokens=12, generated_tokens=2, rejected={"A": 4, "B": 1}),
        Sums(tenant="default", calls=1),
    ]
    assert list(keys) == ["k1"]
    (day,) = keys.values()
    assert len(day) == len("2026-11-30")
    assert meter.drain() == ([], {})


def test_of_nobody_nothing_is_counted() -> None:
    meter = Meter()
    meter.called(NOBODY)
    meter.rejected("", "KEY_INVALID")
    assert meter.drain() == ([], {})


def test_so_many_tenants_are_counted() -> None:
    meter = Meter()
    for i in range(MAX_COUNTED_TENANTS + 5):
        meter.computed(f"t{i}", 1)
    meter.computed("t0", 1)
    usage, _ = meter.drain()
    assert len(usage) == MAX_COUNTED_TENANTS
    assert usage[0].input_tokens == 2


def test_nothing_is_lost_between_threads() -> None:
    meter = Meter()

    def count() -> None:
        for _ in range(3000):
            meter.called(ANYONE)
            meter.computed("default", 2)

    calls = tokens = 0
    with ThreadPoolExecutor(2) as pool:
        counting = [pool.submit(count) for _ in range(2)]
        is_last = False
        while not is_last:
            is_last = all(each.done() for each in counting)
            for sums in meter.drain()[0]:
                calls, tokens = calls + sums.calls, tokens + sums.input_tokens
    assert (calls, tokens) == (6000, 12_000)
