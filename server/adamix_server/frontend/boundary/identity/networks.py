"""Where a call comes from, for credentials that count in some networks alone. Asked for those only."""

import functools
import ipaddress
from collections.abc import Sequence
from typing import Any

from adamix_server.frontend.boundary.rooms import Address, Network, address_of, parse_address

# grpc.aio.ServicerContext: generic in grpc-stubs, but not when it runs.
Context = Any
# As proxies write it: whom they were called by, then whom they were called through, with commas.
FORWARDED_KEY = "x-forwarded-for"


def caller_address(context: Context, proxies: Sequence[Network]) -> Address | None:
    """The caller's own address; None where nobody can be believed about it.

    That of the connection; or, where that is a trusted proxy's, the last one that proxies have noted which is none of
    theirs: what stands before it, the caller may have written.
    """
    address = address_of(context.peer())
    if address is None or not _is_in(address, proxies):
        return address
    noted = [value for key, value in context.invocation_metadata() or () if key == FORWARDED_KEY]
    if not all(isinstance(value, str) for value in noted):
        return None
    for text in reversed(",".join(noted).split(",")):
        address = parse_address(text.strip())
        if address is None or not _is_in(address, proxies):
            return address
    return None


def is_within(address: Address | None, networks: tuple[str, ...]) -> bool:
    """Whether an address is in one of these networks, in CIDR notation."""
    return address is not None and _is_in(address, _parsed(networks))


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


@functools.lru_cache(maxsize=1024)
def _parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(network, strict=False) for network in networks)
