"""Silence counts only while there was somebody to hear it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix_server.supervisor.patience import Patience


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def look_for(self, patience: Patience, seconds: float) -> None:
        """Let time pass while the process runs."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + patience.beat_s, end)
            patience.silent_s()


def test_silence_is_over_at_its_limit_and_not_before() -> None:
    clock = Clock()
    patience = Patience(20.0, clock)
    clock.look_for(patience, 19.5)
    assert not patience.is_over
    clock.now += 0.5
    assert patience.is_over


def test_who_speaks_in_time_is_waited_for_for_ever() -> None:
    clock = Clock()
    patience = Patience(20.0, clock)
    for _ in range(10):
        clock.look_for(patience, 19.0)
        patience.heard()
    assert not patience.is_over


@pytest.mark.parametrize("limit_s", [2.0, 20.0, 900.0])
@pytest.mark.parametrize("pause_s", [30.0, 86_400.0])
def test_a_pause_of_ones_own_is_nobodys_silence(limit_s: float, pause_s: float) -> None:
    clock = Clock()
    patience = Patience(limit_s, clock)
    clock.look_for(patience, limit_s / 2)
    clock.now += pause_s
    assert patience.silent_s() == 0
    clock.look_for(patience, limit_s - 0.1)
    assert not patience.is_over
    clock.look_for(patience, 0.2)
    assert patience.is_over, "who says nothing after the pause, too, is stuck"


@given(st.floats(0.1, 900), st.floats(0, 1e6))
def test_no_pause_ends_the_patience_with_one_who_speaks_at_every_beat(limit_s: float, pause_s: float) -> None:
    clock = Clock()
    patience = Patience(limit_s, clock)
    clock.now += patience.beat_s
    patience.silent_s()
    clock.now += pause_s
    assert not patience.is_over
