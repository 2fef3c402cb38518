"""What stands at a front end's port: its certificate, and who recognises callers.

Made of the operator's files. The supervisor has looked at them before anything started, so one that cannot be used now
is being exchanged: this front end cannot start now, and the next one may.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc

from adamix.errors import InvalidConfig, Unavailable
from adamix_server.access.refusal import RefusalKind
from adamix_server.catalog.access import Access
from adamix_server.config import FrontEndSettings
from adamix_server.frontend.boundary.gate import Identify, everyone
from adamix_server.frontend.boundary.rooms import Network
from adamix_server.frontend.boundary.sessions import Basis


async def _nothing() -> None:
    """Of an entrance that asks nobody."""


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """See the module's docstring.

    Attributes:
        proxies: networks whose addresses stand for many callers.
        credentials: of the port; None for one without TLS.
        identify: tells who makes a call.
        basis: by which it does; another object in it once that has changed.
        keep_fresh: reads again what has changed; to be run in the background.
    """

    proxies: tuple[Network, ...] = ()
    credentials: grpc.ServerCredentials | None = field(default=None, repr=False)
    identify: Identify = everyone
    basis: Callable[[], Basis] = tuple
    keep_fresh: Callable[[], Awaitable[None]] = _nothing


# As `open_entrance`.
OpenEntrance = Callable[[FrontEndSettings, Callable[[], Access], Callable[[RefusalKind, str], None]], Entrance]


def open_entrance(
    settings: FrontEndSettings, access: Callable[[], Access], on_refused: Callable[[RefusalKind, str], None]
) -> Entrance:
    """The entrance that the settings ask for. Reads files.

    Args:
        access: the newest that the catalog says of keys and tenants.
        on_refused: told of every credential that does not count: the cause, and the public name of what was shown.

    Raises:
        Unavailable: a file cannot be used now (`TRUST_FILE_INVALID`).
    """
    proxies = tuple(ipaddress.ip_network(network) for network in settings.trusted_proxies)
    credentials = None
    try:
        # A server without TLS needs no library for certificates, and one that asks nobody none for tokens.
        if settings.tls is not None:
            from adamix_server.frontend.certificate import Certificate

            credentials = Certificate(settings.tls).credentials()
        if settings.access.asks_nobody:
            return Entrance(proxies=proxies, credentials=credentials)
        from adamix_server.frontend.boundary.identity.identity import Identity

        identity = Identity(settings.access, access, proxies=proxies, on_refused=on_refused)
    except InvalidConfig as error:
        raise Unavailable(error.message, reason=error.reason) from None
    return Entrance(
        proxies=proxies,
        credentials=credentials,
        identify=identity,
        basis=identity.basis,
        keep_fresh=identity.keep_fresh,
    )
