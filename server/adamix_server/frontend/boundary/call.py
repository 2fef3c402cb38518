"""What every part of the front end may know about the call it works for.

Set once per call by the boundary (`enclosure.py`), read by servicers. Whatever a call needs of its gRPC context is
copied here when it arrives, because a context must not be touched once its call is gone. A gRPC call runs in one
asyncio task, so a context variable is as local as an argument. Knows neither grpc nor protobuf.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from adamix_server.access.principal import ANYONE, SERVER, Actor, Principal
from adamix_server.frontend.boundary.rooms import Origin

NOWHERE = Origin("")


def _nothing() -> None:
    """Of a caller who cannot be forgotten."""


@dataclass(slots=True)
class Call:
    """One gRPC call.

    `deadline` is in seconds on CLOCK_MONOTONIC and infinite for streams without a total deadline. `resource` is the
    name of what the call asks for, as far as it is known yet; it ends up in the ResourceInfo of a NOT_FOUND.
    `work_s` are the CPU seconds that it has had, as far as they are counted: of the control plane. `digest` is of
    the version that it asks for, if it says so; `input_tokens` of the texts that it had predicted; `detail` is for
    the audit alone: what its caller is not told. `actor` is who the catalog is told has changed something. `check`
    asks once more whether its caller is known, for whoever has kept it waiting; it raises Unauthenticated or
    PermissionDenied.
    """

    request_id: str
    method: str
    deadline: float
    principal: Principal = ANYONE
    resource: str = ""
    origin: Origin = NOWHERE
    work_s: float = 0.0
    digest: str = ""
    input_tokens: int = 0
    detail: str = ""
    check: Callable[[], None] = field(default=_nothing, repr=False)
    _actor: Actor | None = field(default=None, init=False, repr=False)

    @property
    def tenant(self) -> str:
        """The caller's own."""
        return self.principal.tenant

    @property
    def known_tenant(self) -> str:
        """The caller's own, with which it shares what is for all; empty where nobody is asked who they are."""
        return "" if self.principal is ANYONE else self.principal.tenant

    @property
    def actor(self) -> Actor:
        if self._actor is None:
            method = self.method.removeprefix("/")
            self._actor = Actor(self.principal.name, self.origin.connection, method, entries=[])
        return self._actor


_current: ContextVar[Call] = ContextVar("adamix_call")


def forget(call: Call) -> None:
    """It has ended: nothing of it is to be kept by who still looks at it."""
    call.check = _nothing


def enter(call: Call) -> None:
    """Make `call` the current one of this task."""
    _current.set(call)


def find() -> Call | None:
    """The call this task answers; None outside of one, as for housekeeping."""
    return _current.get(None)


def current() -> Call:
    """The call this task answers. LookupError outside of one."""
    return _current.get()


def actor() -> Actor:
    """Who makes the call this task answers; the server itself outside of one."""
    call = find()
    return SERVER if call is None else call.actor
