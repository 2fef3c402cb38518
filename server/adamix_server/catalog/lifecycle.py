"""The life of a version, in one table.

::

    VALIDATING ──> READY ──> RETIRED ──> DELETED
         └──────> FAILED

VALIDATING is held in memory only, FAILED leaves an audit row, DELETED leaves nothing. RETIRED means: no new request
finds it, requests in flight may still hold it, its bytes stay until the engine has let go. Nothing leads back from
RETIRED: the same bytes registered again are a new version with the same digest. Where the weights are (device, host,
store) is another matter, which this module does not know.
"""

from collections.abc import Mapping
from enum import StrEnum

from adamix.errors import FailedPrecondition


class State(StrEnum):
    """State of one version."""

    VALIDATING = "VALIDATING"
    READY = "READY"
    RETIRED = "RETIRED"
    DELETED = "DELETED"
    FAILED = "FAILED"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.VALIDATING: frozenset({State.READY, State.FAILED}),
    State.READY: frozenset({State.RETIRED}),
    State.RETIRED: frozenset({State.DELETED}),
    State.DELETED: frozenset(),
    State.FAILED: frozenset(),
}


def move(current: State, to: State) -> State:
    """Return `to` if the table allows the step; else raise FailedPrecondition (`ILLEGAL_TRANSITION`)."""
    if to not in TRANSITIONS[current]:
        raise FailedPrecondition(f"a version cannot go from {current} to {to}", reason="ILLEGAL_TRANSITION")
    return to
