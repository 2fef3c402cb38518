"""The credentials of a TLS port: one certificate for all front ends, read again when its files change.

grpc asks before every handshake, in a thread of its own. A pair that cannot be used, such as one of which only one
file has been exchanged yet, changes nothing: the last good one stays, the log says so once, and it is tried again from
time to time, since a new certificate may not be valid yet.
"""

import logging

import grpc

from adamix.errors import InvalidConfig
from adamix_server.config import TlsSettings
from adamix_server.trust.tls import read_pair, watch_of

log = logging.getLogger(__name__)


class Certificate:
    """The pair that is shown now. Raises InvalidConfig if there is none that can be."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._watch = watch_of(settings)
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For one port. Every connection must show a certificate, if there is a CA for those."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self.newer,  # type: ignore[arg-type] # the stubs do not know that None stands for no change
            require_client_authentication=self._settings.client_ca is not None,
        )

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """What is to be shown from now on; None if nothing of use has changed."""
        if not self._watch.is_due():
            return None
        try:
            pair = self._read()
        except InvalidConfig as error:
            if self._watch.failed(error.message):
                log.error("the certificate stays as it was: %s", error.message)  # noqa: TRY400 - the trace says nothing
            return None
        log.info("the certificate was read again")
        return pair

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair = read_pair(self._settings)
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.client_ca)
