"""How long an input will wait: never less with more before it, and not too much for who asks for little."""

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adamix_server.frontend.inference.deadline import Queue

amounts = st.floats(0, 1e6)
queues = st.builds(
    Queue,
    queued=amounts,
    before=amounts,
    own=amounts,
    busy=amounts,
    batch=st.floats(1, 1e5),
    active_weight=st.floats(0, 1e4),
    weight=st.floats(1, 1e3),
    tokens_per_s=st.floats(1, 1e6),
)


def queue(**of: Any) -> Queue:
    """An engine of 7,500 tokens a second with batches of 1,024."""
    fields = {"queued": 0, "own": 0, "busy": 0, "batch": 1024, "active_weight": 1, "weight": 1, "tokens_per_s": 7500}
    return Queue(**(fields | of))


@given(queues, amounts, st.sampled_from(["queued", "before", "own", "busy", "batch", "active_weight", "size"]), amounts)
def test_more_before_it_is_never_a_shorter_wait(queue: Queue, size: float, what: str, more: float) -> None:
    wait_s = queue.wait_s(size)
    assert wait_s is not None
    if what == "size":
        longer = queue.wait_s(size + more)
    else:
        longer = msgspec.structs.replace(queue, **{what: getattr(queue, what) + more}).wait_s(size)
    assert longer is not None
    assert longer >= wait_s * (1 - 1e-9) >= 0


@given(queues, amounts, st.floats(1.01, 100))
def test_a_faster_engine_or_a_heavier_tenant_waits_less(queue: Queue, size: float, factor: float) -> None:
    wait_s, drained_s = queue.wait_s(size), queue.drained_s(size)
    faster = msgspec.structs.replace(queue, tokens_per_s=queue.tokens_per_s * factor)
    heavier = msgspec.structs.replace(queue, weight=queue.weight * factor)
    assert wait_s is not None
    assert drained_s is not None
    for other in (faster, heavier):
        other_wait_s, other_drained_s = other.wait_s(size), other.drained_s(size)
        assert other_wait_s is not None
        assert other_drained_s is not None
        assert other_wait_s <= wait_s * (1 + 1e-9)
        assert other_drained_s <= drained_s * (1 + 1e-9)


@given(queues, amounts)
def test_it_waits_for_no_more_than_there_is(queue: Queue, size: float) -> None:
    assert queue.ahead <= queue.queued
    wait_s = queue.wait_s(size)
    assert wait_s is not None
    assert wait_s <= (1.5 * (queue.queued + size) + 1.5 * queue.batch) / queue.tokens_per_s * (1 + 1e-9)
    assume(queue.own <= queue.queued)
    assert queue.ahead >= queue.own * (1 - 1e-9)


def test_the_numbers_of_the_design() -> None:
    # One and a half of its own and of what others get meanwhile, and one and a half batches.
    assert queue(queued=30_000, own=1_500, busy=30_000, active_weight=4).wait_s(500) == pytest.approx(
        (1.5 * (4 * 1_500 + 500) + 1.5 * 1024) / 7500
    )
    # Never more than all.
    assert queue(queued=3_000, own=1_500, busy=3_000, active_weight=4).wait_s(500) == pytest.approx(
        (1.5 * 3_500 + 1.5 * 1024) / 7500
    )
    assert queue(queued=9_000, own=1_500, busy=9_000, weight=4, active_weight=4).ahead == 1_500
    # Of the class `batch`, behind all of the other.
    assert queue(queued=9_000, before=5_000, own=1_500, active_weight=2).ahead == 8_000


def test_nobody_is_refused_by_an_engine_that_is_idle_or_has_measured_nothing() -> None:
    wait_s = queue().wait_s(10)
    assert wait_s is not None
    assert wait_s < 0.005
    assert queue(queued=1e6, own=1e6, tokens_per_s=0).wait_s(10) is None
    assert queue(queued=1e6, own=1e6, tokens_per_s=0).drained_s(10) is None


def test_own_and_a_fair_share_of_the_queue_would_refuse_every_call_of_a_second_beside_a_flood() -> None:
    """The trap: a flood holds half of eight seconds of work; the victim's call of 64 tokens takes 40 ms."""
    flooded = queue(queued=30_000, own=0, busy=30_000, active_weight=1 + 1)
    plain_s = (flooded.own + flooded.queued / 2 + 64) / flooded.tokens_per_s
    assert plain_s > 1.0
    wait_s = flooded.wait_s(64)
    assert wait_s is not None
    assert wait_s < 0.25
    # Still, the flood's own next call is told the truth.
    own_s = msgspec.structs.replace(flooded, own=30_000).wait_s(64)
    assert own_s is not None
    assert own_s > 4.0
