"""File descriptors: how many a process may have, and how many of them connections may take.

A connection costs its caller nothing and this process a descriptor, so connections get what the rest can spare:
without descriptors no engine is started, no upload written, no catalog read. Knows no process's parts.
"""

import resource

# Whatever the machine allows beyond it is no use, and some programs that children start walk over all there could be.
_MOST = 1 << 20
# What a process needs beside its connections: pipes to a child that is started, the catalog, uploads, validators.
_FOR_OTHERS = 256


def raise_limit() -> int:
    """Take all the descriptors that this process and its children may have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def room_for_connections(wanted: int, ports: int = 1) -> int:
    """As many of `wanted` connections as leave enough for everything else; under a small limit half of it.

    Of so many `ports` that want as many, each gets its part.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(max(limit - _FOR_OTHERS, limit // 2) // ports, 1))
