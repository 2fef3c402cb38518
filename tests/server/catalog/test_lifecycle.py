import itertools

import pytest

from adamix.errors import FailedPrecondition
from adamix_server.catalog.lifecycle import TRANSITIONS, State, move

LEGAL = {
    (State.VALIDATING, State.READY),
    (State.VALIDATING, State.FAILED),
    (State.READY, State.RETIRED),
    (State.RETIRED, State.DELETED),
}


@pytest.mark.parametrize(("current", "to"), list(itertools.product(State, State)))
def test_exactly_the_moves_of_the_table_are_legal(current: State, to: State) -> None:
    if (current, to) in LEGAL:
        assert move(current, to) is to
    else:
        with pytest.raises(FailedPrecondition) as caught:
            move(current, to)
        assert caught.value.reason == "ILLEGAL_TRANSITION"


def test_every_state_has_a_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)
