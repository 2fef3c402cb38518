"""What is read from calls that ended: numbers by hand."""

import pytest

from adamix_bench.tenants.proof import deviation, steadiness
from adamix_bench.tenants.trace import Ended, Trace, fit


def call(tenant: str, due_s: float, latency_s: float, outcome: str = "ok", tokens: int = 10) -> Ended:
    answered = tokens if outcome == "ok" else 0
    return Ended(tenant, due_s, due_s + latency_s, tokens, answered, outcome)  # type: ignore[arg-type]


def trace(*calls: Ended, seconds: float = 8.0) -> Trace:
    return Trace(seconds, calls, [(each.ended_s, each.tenant, each.answered) for each in calls if each.answered])


def test_latencies_are_of_what_was_answered_once_things_have_settled() -> None:
    found = trace(call("a", 0.5, 9.0), call("a", 2, 0.25), call("a", 3, 7.0, "refused"), call("b", 2, 4.0))
    assert found.p99_s("a") == pytest.approx(0.25)
    assert found.refusal_p99_s() == pytest.approx(7.0)
    assert found.longest_s("a") == pytest.approx(7.0)
    assert found.unanswered("a") == 1
    assert found.p99_s("nobody") is None


def test_goodput_leaves_out_what_came_too_late_and_expired_is_of_what_was_let_in() -> None:
    found = trace(
        call("a", 2, 1, tokens=70), call("a", 2, 2, "expired"), call("a", 2, 0, "refused"), call("a", 7.9, 1, tokens=9)
    )
    assert found.goodput() == pytest.approx(70 / 7)
    assert found.expired_share() == pytest.approx(1 / 3)


def test_windows_are_of_five_seconds_and_the_worst_counts() -> None:
    served = [(1.5, "one", 10), (1.6, "two", 10), (1.7, "double", 20), (6.5, "one", 30)]
    found = Trace(8.0, [], served)
    assert found.windows() == [(1.0, 6.0), (2.0, 7.0), (3.0, 8.0)]
    # In the second window only one of four shares was served: three times too much of it, all of the others missing.
    assert deviation(found, ["one", "two", "double"]) == pytest.approx(3.0)
    assert deviation(Trace(8.0, [], served[:3] * 1), ["one", "two", "double"]) == pytest.approx(1.0)
    assert deviation(Trace(3.0, [], served), ["one"]) is None


def test_steadiness_is_the_worst_second_over_the_mean() -> None:
    assert steadiness(Trace(4.0, [], [(1.1, "a", 30), (2.1, "a", 10), (3.1, "a", 20)])) == pytest.approx(0.5)
    assert steadiness(Trace(4.0, [], [])) is None


def test_tokens_over_time_are_a_rate_a_tenant() -> None:
    times, rates = Trace(2.0, [], [(0.1, "b", 5), (0.4, "b", 5), (1.6, "a", 3), (9.0, "a", 99)]).over_time(0.5)
    assert times == [0.25, 0.75, 1.25, 1.75]
    assert rates == {"a": [0, 0, 0, 6], "b": [20, 0, 0, 0]}


def test_batches_give_the_seconds_of_a_batch_and_of_a_token() -> None:
    found = fit([(100, 0.02), (200, 0.03), (1000, 0.11)])
    assert found is not None
    assert found == pytest.approx((0.01, 0.0001))
    assert fit([(100, 0.02)]) is None
    assert fit([(100, 0.02), (200, 0.01)]) is None
