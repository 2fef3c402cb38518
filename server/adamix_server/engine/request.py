"""One inference request inside the engine, and the batch it is answered in.

A request is one object from its arrival to its final event, and whoever has to do with it keeps a reference to it: what
it asks for, what it holds, how far it is and where its time went. Nothing else remembers it. Knows neither tensors nor
who answers it.
"""

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from adamix_server.channel.channel import Peer
from adamix_server.channel.engine_frames import Row, Timing
from adamix_server.engine.residency.slots import Hold

# Of a request that nothing was computed of.
NOT_RUN = Timing()


class Status(Enum):
    QUEUED = "queued"  # until a batch takes it
    RUNNING = "running"
    ENDED = "ended"  # its final event is on its way; for good


@dataclass(eq=False, slots=True)
class Request:
    """One row of a `Submit` frame. Two requests are never equal; front ends name theirs by (peer, id).

    Attributes:
        row: what was asked, as it came.
        arrived: in seconds on CLOCK_MONOTONIC, as all times.
        hold: on its adapter, from its arrival until it ends.
        slot: of its adapter, once it runs; 0 is no adapter.
        timing: where its time went, once it has run.
        num_tokens: of its row.
        number: its place among all that have arrived.
        passed: in how many batches it was its tenant's oldest and too long for what was left.
        num_events: that its front end was sent.
    """

    row: Row = field(repr=False)
    peer: Peer
    arrived: float
    hold: Hold
    slot: int = 0
    status: Status = Status.QUEUED
    timing: Timing = NOT_RUN
    number: int = 0
    passed: int = 0
    num_events: int = 0
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        # Asked several times of every request, by each who counts tokens.
        self.num_tokens = len(self.row.token_ids) // 4

    @classmethod
    def of_tokens(
        cls, token_ids: NDArray[np.int32], type_ids: NDArray[np.int32] | None = None, slot: int = 0
    ) -> "Request":
        """A request of nobody, for those who run a model without an engine around it."""
        types = None if type_ids is None else type_ids.astype("<i4").tobytes()
        row = Row(
            id=0,
            tenant="",
            digest="",
            token_ids=token_ids.astype("<i4").tobytes(),
            type_ids=types,
            deadline=float("inf"),
        )
        return cls(row, peer=b"", arrived=0.0, hold=Hold("", since=0.0), slot=slot)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """A view of the row's bytes."""
        return np.frombuffer(self.row.token_ids, "<i4")

    @property
    def type_ids(self) -> NDArray[np.int32] | None:
        """A view of the row's bytes, if it has types."""
        return None if self.row.type_ids is None else np.frombuffer(self.row.type_ids, "<i4")


@dataclass(frozen=True)
class Batch:
    """What one step computes: requests grouped by adapter, so that each adapter's rows lie together."""

    requests: tuple[Request, ...]

    @classmethod
    def of(cls, requests: list[Request]) -> "Batch":
        """Group by digest, keeping the order of first appearance and, within a digest, of arrival."""
        by_digest: dict[str, list[Request]] = {}
        for request in requests:
            by_digest.setdefault(request.row.digest, []).append(request)
        return cls(tuple(chain.from_iterable(by_digest.values())))

    @cached_property
    def num_tokens(self) -> int:
        return sum(request.num_tokens for request in self.requests)

    @cached_property
    def num_adapters(self) -> int:
        return len({request.row.digest for request in self.requests})

    def halves(self) -> tuple["Batch", "Batch"]:
        middle = len(self.requests) // 2
        return Batch(self.requests[:middle]), Batch(self.requests[middle:])
