"""The server's TLS certificate with its key, and the CA that its callers' certificates are signed by.

Read as one: a pair of which only one half has been exchanged yet is none. Knows no wire.
"""

import datetime as dt
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from adamix_server.config import TlsSettings
from adamix_server.trust.files import Watch, read, wrong


@dataclass(frozen=True)
class TlsPair:
    """What a server shows, and whom it asks for a certificate.

    Attributes:
        certificate, key: in PEM; the certificate is the server's own, then those up to its CA.
        client_ca: in PEM, of which every caller must have a certificate; None where none is asked for one.
        expire_time: of the server's own.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    expire_time: dt.datetime


def watch_of(settings: TlsSettings) -> Watch:
    """Tells when the pair is to be read again."""
    return Watch(path for path in (settings.cert, settings.key, settings.client_ca) if path is not None)


def read_pair(settings: TlsSettings, now: dt.datetime | None = None) -> TlsPair:
    """The pair, if it can be served with now. Raises InvalidConfig (`TRUST_FILE_INVALID`) with what is wrong."""
    certificate, key = read(settings.cert, "--tls-cert"), read(settings.key, "--tls-key")
    leaf = _certificates(certificate, "--tls-cert", str(settings.cert))[0]
    try:
        private = load_pem_private_key(key, password=None)
        is_its_key = _public_bytes(private) == _public_bytes(leaf)
    except TypeError:
        raise wrong("--tls-key", f"{settings.key} is encrypted, and nobody is here to ask for its password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise wrong("--tls-key", f"{settings.key} holds no private key in PEM that is of use here") from None
    if not is_its_key:
        raise wrong("--tls-key", f"{settings.key} is not the key of the first certificate in {settings.cert}")
    now = now or dt.datetime.now(dt.UTC)
    if now >= leaf.not_valid_after_utc:
        raise wrong("--tls-cert", f"{settings.cert} has expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < leaf.not_valid_before_utc:
        raise wrong("--tls-cert", f"{settings.cert} is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    client_ca = None
    if settings.client_ca is not None:
        client_ca = read(settings.client_ca, "--client-ca")
        authorities = _certificates(client_ca, "--client-ca", str(settings.client_ca))
        if all(now >= authority.not_valid_after_utc for authority in authorities):
            raise wrong("--client-ca", f"every certificate in {settings.client_ca} has expired")
    return TlsPair(certificate, key, client_ca, leaf.not_valid_after_utc)


def _certificates(data: bytes, flag: str, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):
        raise wrong(flag, f"{path} holds no certificate in PEM, or a damaged one") from None


def _public_bytes(of: object) -> bytes:
    public: bytes = of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined] # of a key or a certificate
    return public
