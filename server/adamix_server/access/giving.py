"""What a principal may hand on to others: no more than it has itself.

Pure. Whose tenant a key is for is asked elsewhere.
"""

import fnmatch
import ipaddress
from collections.abc import Collection

from adamix_server.access.principal import Principal
from adamix_server.access.rights import Right

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SPECIAL = frozenset("*?[")


def may_give(principal: Principal, rights: Collection[Right], task_pattern: str = "") -> bool:
    """Whether it may give a key with these rights, for the tasks that `task_pattern` matches (empty: all)."""
    return all(map(principal.has, rights)) and is_within(task_pattern, principal.task_pattern)


def is_within(pattern: str, bounds: str) -> bool:
    """Whether every id that matches `pattern` surely matches `bounds`; patterns as those of principals.

    Not every pattern that is within another is told to be: only equal ones, names without wildcards, and such with `*`
    and `?` alone within one that has no wildcard but `*`.
    """
    if not bounds or pattern == bounds:
        return True
    if not pattern:
        return False
    if _SPECIAL.isdisjoint(pattern):
        return fnmatch.fnmatchcase(pattern, bounds)
    # What `*` takes of the text of a pattern, it also takes of whatever that stands for.
    return "[" not in pattern + bounds and "?" not in bounds and fnmatch.fnmatchcase(pattern, bounds)


def networks_within(networks: Collection[str], bounds: Collection[str]) -> bool:
    """Whether every address of `networks` is in one of `bounds`; in CIDR notation, and none for all addresses."""
    if not bounds:
        return True
    outer = [ipaddress.ip_network(bound) for bound in bounds]
    inner = [ipaddress.ip_network(network) for network in networks]
    return bool(inner) and all(any(_is_part(network, bound) for bound in outer) for network in inner)


def _is_part(network: _Network, bound: _Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(bound, ipaddress.IPv4Network) and network.subnet_of(bound)
    return isinstance(bound, ipaddress.IPv6Network) and network.subnet_of(bound)
