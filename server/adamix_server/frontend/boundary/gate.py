"""Who calls, and whether they may: asked of every call before a byte of its message is read.

Who somebody is, others tell (`identify`); which right a method needs, `access/rights.py` does. Here the two meet.
"""

from collections.abc import Callable
from typing import Any

from adamix.errors import PermissionDenied
from adamix_server.access.principal import ANYONE, NOBODY, Principal
from adamix_server.access.rights import NEEDS, Need

# grpc.aio.ServicerContext: generic in grpc-stubs, but not when it runs.
Context = Any
# Raises Unauthenticated.
Identify = Callable[[Context], Principal]


def everyone(_context: Context) -> Principal:
    """Who calls a server that asks nobody who they are."""
    return ANYONE


class Gate:
    """Lets calls in.

    Args:
        identify: tells who makes a call.
    """

    def __init__(self, identify: Identify = everyone) -> None:
        self._identify = identify

    def admit(self, method: str, context: Context) -> Principal:
        """Who makes a call of `method`, if they may. Raises Unauthenticated, PermissionDenied."""
        principal = self.identify(method, context)
        self.check(method, principal)
        return principal

    def identify(self, method: str, context: Context) -> Principal:
        """Who makes a call of `method`. Raises Unauthenticated: nobody knows the caller."""
        return NOBODY if _need(method) == "nothing" else self._identify(context)

    def check(self, method: str, principal: Principal) -> None:
        """Whether somebody may call `method`. Raises PermissionDenied: the right that it needs is missing."""
        need = _need(method)
        if need != "identity" and need != "nothing" and not principal.has(need):
            raise PermissionDenied(
                f"this credential has no right {need!r}, which {method.rpartition('/')[2]} needs",
                reason="RIGHT_MISSING",
            )


def _need(method: str) -> Need:
    # A method that there is not is told apart from one that there is only by those whom we know.
    return NEEDS.get(method, "identity")
