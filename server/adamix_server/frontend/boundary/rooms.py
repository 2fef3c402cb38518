"""Room that is shared by connections, and by tenants: how much of something there is, and who holds how much of it.

No caller needs to be told how many others there are: each may hold at most a share of what is free *now* (dynamic
thresholds, Choudhury and Hahne 1998), so whoever comes new finds some. Pure: no clock, no loop, no grpc.
"""

import functools
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from adamix_client.addresses import is_loopback

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Of the free room: a connection may hold a quarter, all connections of one address a half.
CONNECTION_SHARE = 4
ADDRESS_SHARE = 2
# Of all room: a tenant may hold a quarter while others hold some.
TENANT_SHARE = 4


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call comes from.

    Attributes:
        connection: the peer as grpc names it; of one connection, except over a unix socket.
        address: of the machine, if its connections share a room; empty on loopback and for trusted proxies.
        is_trusted: takes what is free: a unix socket, whose connections cannot be told apart.
    """

    connection: str
    address: str = ""
    is_trusted: bool = False


def origin_of(peer: str, proxies: Sequence[Network]) -> Origin:
    """The origin of a call whose peer is e.g. `ipv4:10.0.0.7:51234`, `ipv6:%5B::1%5D:51234` or `unix:`."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return Origin(peer, is_trusted=kind.startswith("unix"))
    address = address_of(peer)
    if address is None:
        return Origin(peer, unquote(rest).rpartition(":")[0])
    if is_loopback(str(address)) or any(address in network for network in proxies):
        return Origin(peer)
    return Origin(peer, str(address))


def address_of(peer: str) -> Address | None:
    """The address of a peer as grpc names it; None if it has none, as over a unix socket."""
    kind, _, rest = peer.partition(":")
    return parse_address(unquote(rest).rpartition(":")[0]) if kind in ("ipv4", "ipv6") else None


def parse_address(text: str) -> Address | None:
    """An address with or without brackets and a zone, one of IPv4 in IPv6 as that of IPv4; None if it is none."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def origins(proxies: Sequence[Network]) -> Callable[[str], Origin]:
    """`origin_of` that remembers the connections it was last asked for."""
    return functools.lru_cache(maxsize=4096)(functools.partial(origin_of, proxies=tuple(proxies)))


class Room:
    """`size` of something, in whole numbers.

    Args:
        size: all there is.
        least: what a connection that holds nothing may always take, as long as so much is free.
    """

    def __init__(self, size: int, least: int = 1) -> None:
        self.free = size
        self._least = least
        self._held: dict[str, int] = {}

    def take(self, origin: Origin, amount: int, need: int = 0) -> bool:
        """Take `amount` if it is there and within the origin's shares; else nothing, and False.

        Args:
            need: what must be there instead, where more than `amount` is in use for a moment; 0 is the amount.
        """
        need = need or amount
        if need > self.free:
            return False
        if not origin.is_trusted:
            held = self._held.get(origin.connection, 0)
            if held + need > max(self._least, self.free // CONNECTION_SHARE):
                return False
            if origin.address:
                beside = self._held.get(origin.address, 0)
                if beside + need > max(self._least, self.free // ADDRESS_SHARE):
                    return False
                self._held[origin.address] = beside + amount
            self._held[origin.connection] = held + amount
        self.free -= amount
        return True

    def give(self, origin: Origin, amount: int) -> None:
        """Give back what was taken."""
        self.free += amount
        if origin.is_trusted:
            return
        for key in (origin.connection, origin.address) if origin.address else (origin.connection,):
            if left := self._held[key] - amount:
                self._held[key] = left
            else:
                del self._held[key]


class TenantParts:
    """What each tenant holds of a room of `size`, whatever connections it comes by.

    One that is alone may hold all of it: what is kept for others by its connections' shares is enough for them to come,
    and from then on it gets no more until it holds a quarter. One that holds nothing may take what it needs. Nobody
    known (an empty tenant) is no tenant.
    """

    def __init__(self, size: int) -> None:
        self._most = size // TENANT_SHARE
        self._held: dict[str, int] = {}

    def may_take(self, tenant: str, need: int) -> bool:
        """Whether a tenant may hold so much more."""
        held = self._held.get(tenant, 0)
        return not tenant or not held or held + need <= self._most or len(self._held) == 1

    def take(self, tenant: str, amount: int) -> None:
        if tenant:
            self._held[tenant] = self._held.get(tenant, 0) + amount

    def give(self, tenant: str, amount: int) -> None:
        """Give back what was taken."""
        if not tenant:
            return
        if left := self._held[tenant] - amount:
            self._held[tenant] = left
        else:
            del self._held[tenant]
