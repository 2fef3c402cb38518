"""The tenants of one engine: what each has queued, when it last asked, its weight and class. Pure: no clock.

Kept of a tenant while it has something queued, and for a second after it last asked. Knows no order among them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from adamix_server.access.quotas import DEFAULT_SHARES, Shares
from adamix_server.channel.channel import Peer
from adamix_server.engine.request import Request

# Who asked within so long may well ask again while the next batch runs.
LATELY_S = 1.0


@dataclass(eq=False, slots=True)
class Tenant:
    """What one of them has queued.

    Attributes:
        tokens: of its requests, whether they could run or not. `inputs`: how many these are.
        peers: the front ends that have queued any since there were none.
        asked: when it last queued one.
        is_leaving: it is listed among those that ran out of requests.
    """

    name: str
    weight: int
    is_batch: bool
    tokens: int = 0
    inputs: int = 0
    peers: set[Peer] = field(default_factory=set)
    asked: float = float("-inf")
    is_leaving: bool = False


class Tenants:
    """Those that have something queued, or asked lately.

    Args:
        much: tokens of a tenant beside which others wait too long for theirs.

    Attributes:
        queued_tokens: of all, and `batch_tokens` of those of the class `batch`.
        queued_weight: of those that have something queued, together.
        interactive_asked: when an interactive tenant last asked.
    """

    def __init__(self, much: int) -> None:
        self._much = much
        # How many have so much queued, so that usually nobody has to look for them.
        self._num_large = 0
        self._tenants: dict[str, Tenant] = {}
        self._shares: Mapping[str, Shares] = {}
        # Those that ran out of requests, each with when it had last asked by then.
        self._leaving: deque[tuple[float, Tenant]] = deque()
        self.queued_tokens = self.batch_tokens = self.queued_weight = 0
        self.interactive_asked = float("-inf")

    def __len__(self) -> int:
        return len(self._tenants)

    def shares(self, name: str) -> Shares:
        return self._shares.get(name, DEFAULT_SHARES)

    def queued(self) -> Iterable[Tenant]:
        """Those that have something queued."""
        return (tenant for tenant in self._tenants.values() if tenant.inputs)

    def tokens_for(self, peer: Peer, most: int, changed: Iterable[str]) -> dict[str, int]:
        """The tokens of each tenant that a front end has something queued of; if they are more than `most`, and of
        those that it had something queued of, only of `changed`."""
        mine = {tenant.name: tenant.tokens for tenant in self.queued() if peer in tenant.peers}
        if len(mine) <= most:
            return mine
        return {name: mine.get(name, 0) for name in changed}

    def came(self, request: Request) -> Tenant:
        """A request was queued."""
        name, num_tokens, now = request.row.tenant, request.num_tokens, request.arrived
        if (tenant := self._tenants.get(name)) is None:
            shares = self.shares(name)
            tenant = self._tenants[name] = Tenant(name, shares.weight, shares.service_class == "batch")
        if not tenant.inputs:
            self.queued_weight += tenant.weight
            tenant.peers.clear()
        tenant.inputs += 1
        self._num_large -= tenant.tokens > self._much
        tenant.tokens += num_tokens
        self._num_large += tenant.tokens > self._much
        tenant.peers.add(request.peer)
        tenant.asked = now
        self.queued_tokens += num_tokens
        if tenant.is_batch:
            self.batch_tokens += num_tokens
        else:
            self.interactive_asked = now
        return tenant

    def went(self, request: Request) -> Tenant:
        """A request is no longer queued."""
        tenant, num_tokens = self._tenants[request.row.tenant], request.num_tokens
        tenant.inputs -= 1
        self._num_large -= tenant.tokens > self._much
        tenant.tokens -= num_tokens
        self._num_large += tenant.tokens > self._much
        self.queued_tokens -= num_tokens
        if tenant.is_batch:
            self.batch_tokens -= num_tokens
        if not tenant.inputs:
            self.queued_weight -= tenant.weight
            if not tenant.is_leaving:
                tenant.is_leaving = True
                self._leaving.append((tenant.asked, tenant))
        return tenant

    def forget(self, now: float) -> None:
        """Forget those that have nothing queued and did not ask lately."""
        leaving, since = self._leaving, now - LATELY_S
        while leaving and leaving[0][0] < since:
            _, tenant = leaving.popleft()
            if not tenant.inputs and tenant.asked >= since:
                leaving.append((tenant.asked, tenant))
                continue
            tenant.is_leaving = False
            if not tenant.inputs:
                del self._tenants[tenant.name]

    def change(self, shares: Mapping[str, Shares]) -> list[Tenant]:
        """All tenants' weights and classes from now on, but for those that are as usual. Those that have others now."""
        self._shares = shares
        changed: list[Tenant] = []
        for tenant in self._tenants.values():
            new = self.shares(tenant.name)
            is_batch = new.service_class == "batch"
            if (tenant.weight, tenant.is_batch) == (new.weight, is_batch):
                continue
            if tenant.inputs:
                self.queued_weight += new.weight - tenant.weight
                self.batch_tokens += tenant.tokens * (is_batch - tenant.is_batch)
            tenant.weight, tenant.is_batch = new.weight, is_batch
            changed.append(tenant)
        return changed

    def is_light_beside_hog(self, batch_tokens: int, ready: Callable[[str], int]) -> bool:
        """Whether an interactive tenant that asks for little, also if it has nothing queued, is beside one with much.

        Args:
            batch_tokens: little is at most a tenant's share of so many, whatever they wait for.
            ready: a tenant's tokens that could run now. Much are more than `much` of these.
        """
        if not self._num_large or len(self._tenants) < 2:
            return False
        interactive = [tenant for tenant in self._tenants.values() if not tenant.is_batch]
        share = batch_tokens / max(sum(tenant.weight for tenant in interactive), 1)
        if not any(tenant.tokens <= share * tenant.weight for tenant in interactive):
            return False
        return any(ready(tenant.name) > self._much for tenant in interactive if tenant.tokens > self._much)
