"""What a page of another site may make a browser do here: nothing.

A browser names the page's site in `Origin` with whatever may change something, and in `Host` the name it was led here
by. Where nobody is asked who they are, a name that is made to stand for this machine (DNS rebinding) would do for a
credential; so a port for this machine alone is asked for by an address, or as `localhost`. Knows requests.
"""

import ipaddress

from adamix.errors import PermissionDenied
from adamix_server.frontend.http.request import Request

# Which change nothing.
_SAFE = ("GET", "HEAD", "OPTIONS")


def check(request: Request, *, is_private: bool) -> None:
    """Raises PermissionDenied (`ORIGIN_FOREIGN`, `HOST_FOREIGN`) for what a page of another site has had sent.

    Args:
        is_private: the port is for this machine alone, and asks nobody who they are.
    """
    host = request.header("host") or ""
    origin = None if request.method in _SAFE else request.header("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise PermissionDenied(
            "a page of another site may not call this server from a browser", reason="ORIGIN_FOREIGN"
        )
    if is_private and host and not _is_of_this_machine(host):
        raise PermissionDenied(
            "this server asks nobody who they are, and so answers to no name: ask for localhost or an address, or "
            "start it with --auth",
            reason="HOST_FOREIGN",
        )


def _is_of_this_machine(host: str) -> bool:
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
