"""The port that several front ends share, held by the supervisor for as long as the server runs.

Each front end listens with SO_REUSEPORT, and the kernel spreads new connections over them. With that option alone, a
second server could listen on the same port and take its share of the traffic without a word. So the supervisor first
makes sure that nobody else is there, and then holds the port with a socket that never listens: port 0 is resolved
once, and the port stays this server's while a front end is being replaced.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator

from adamix.errors import InvalidConfig
from adamix_client.addresses import split_address

# A machine without IPv6 still has a `localhost`.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_Address = tuple[socket.AddressFamily, str]


def cannot_listen(listen: str, field: str = "listen") -> InvalidConfig:
    return InvalidConfig(
        f"cannot listen on {listen}: another program uses it, or it is not an address of this machine",
        reason="ADDRESS_IN_USE",
        field=field,
    )


@contextlib.contextmanager
def held_port(listen: str, field: str = "listen") -> Iterator[str]:
    """Hold the port of `host:port` (0 takes a free one); gives the address with the real port.

    Args:
        field: the setting that says it.

    Raises:
        InvalidConfig: it cannot be bound (`ADDRESS_IN_USE`).
    """
    host, port = split_address(listen)
    with contextlib.ExitStack() as closing:
        # A name such as `localhost` may stand for several addresses, which then have one port in common.
        is_held = False
        try:
            for family, address in _resolve(host):
                try:
                    _bind(family, address, port, exclusively=True).close()
                    held = closing.enter_context(_bind(family, address, port, exclusively=False))
                except OSError as error:
                    if error.errno in _NOT_HERE:
                        continue
                    raise
                port, is_held = held.getsockname()[1], True
        except OSError:
            raise cannot_listen(listen, field) from None
        if not is_held:
            raise cannot_listen(listen, field)
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _resolve(host: str) -> list[_Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bind(family: socket.AddressFamily, address: str, port: int, *, exclusively: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of an earlier server that are only waiting to be forgotten are no obstacle.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not exclusively:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address, port))
        # From here on this socket is an obstacle, to everyone who does not share the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        bound.close()
        raise
    return bound
