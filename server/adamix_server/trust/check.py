"""What a server is to be started with, looked at before anything starts."""

import datetime as dt
import logging

from adamix_server.config import FrontEndSettings

log = logging.getLogger(__name__)

# Of a certificate's end the log tells this much before.
_SOON = dt.timedelta(days=14)


def check_files(settings: FrontEndSettings) -> None:
    """Raises InvalidConfig (`TRUST_FILE_INVALID`) for a file that cannot be used, with what is wrong with it."""
    # A server without them needs no library for them.
    if settings.tls is not None:
        from adamix_server.trust.tls import read_pair

        pair = read_pair(settings.tls)
        if pair.expire_time - dt.datetime.now(dt.UTC) < _SOON:
            log.warning("the certificate expires soon", extra={"expires": pair.expire_time.isoformat()})
    if settings.access.jwt_jwks is not None:
        from adamix_server.trust.jwks import read_jwks

        read_jwks(settings.access.jwt_jwks)
