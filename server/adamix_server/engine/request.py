"""One inference request inside the engine, and the batch it is answered in. Plain data."""

from dataclasses import dataclass, field
from functools import cached_property

from adamix_server.channel import Peer


@dataclass(frozen=True, eq=False)
class Request:
    """One row of a `Submit` frame. Identity is (peer, id): ids are chosen by front ends.

    `token_ids` and `type_ids` are little-endian int32 bytes; times are seconds on CLOCK_MONOTONIC.
    """

    peer: Peer
    id: int
    tenant: str
    digest: str
    token_ids: bytes = field(repr=False)
    type_ids: bytes | None = field(repr=False)
    deadline: float
    arrived: float

    @property
    def key(self) -> tuple[Peer, int]:
        return self.peer, self.id

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) // 4


@dataclass(frozen=True)
class Batch:
    """What one step computes: requests grouped by adapter, so that each adapter's rows lie together."""

    requests: tuple[Request, ...]

    @classmethod
    def of(cls, requests: list[Request]) -> "Batch":
        """Group by digest, keeping the order of first appearance and, within a digest, of arrival."""
        order = {digest: i for i, digest in enumerate(dict.fromkeys(r.digest for r in requests))}
        return cls(tuple(sorted(requests, key=lambda r: order[r.digest])))

    @cached_property
    def num_tokens(self) -> int:
        return sum(request.num_tokens for request in self.requests)

    @cached_property
    def num_adapters(self) -> int:
        return len({request.digest for request in self.requests})

    def halves(self) -> tuple["Batch", "Batch"]:
        middle = len(self.requests) // 2
        return Batch(self.requests[:middle]), Batch(self.requests[middle:])
