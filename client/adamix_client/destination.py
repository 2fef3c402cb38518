"""Where a client's server is, how it is known to be that, and what the client shows it.

Nothing secret stands in the form that is printed, and a key goes unencrypted to nobody but this machine itself.
"""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from adamix_client.addresses import is_loopback, split_address
from adamix_client.errors import InvalidConfig

TLS_SCHEME = "grpcs://"
DEFAULT_ADDRESS = "127.0.0.1:50051"
# Where the roots of a system are, if Python does not know better.
_ROOT_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

_MAX_FILE_BYTES = 1 << 20
# A file in PEM, or what would be in it.
Pem = Path | str | bytes


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a client trusts and shows. Raises InvalidConfig on values that do not go together.

    Attributes:
        ca: certificates of which one has signed the server's; None for the system's.
        cert, key: the client's own, where the server asks for one.
        api_key: or a token: whatever follows `Bearer`.
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.cert is None) is not (self.key is None):
            raise InvalidConfig("a certificate and its key are given together: cert= and key=", field="cert")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise InvalidConfig("the API key holds characters that none has, or is empty", field="api_key")
        if self.api_key is not None and " " in self.api_key:
            raise InvalidConfig("the API key holds a space; give it as it is in its file", field="api_key")

    def over(self, others: "Credentials") -> "Credentials":
        """These, and the others' where there are none here; a certificate goes with its own key."""
        own = self if self.cert is not None else others
        return Credentials(
            ca=self.ca if self.ca is not None else others.ca,
            cert=own.cert,
            key=own.key,
            api_key=self.api_key if self.api_key is not None else others.api_key,
        )

    @property
    def are_for_tls(self) -> bool:
        return self.ca is not None or self.cert is not None


NO_CREDENTIALS = Credentials()


class Destination:
    """One server.

    Args:
        address: `host:port`; with TLS if it begins with `grpcs://`, or if there are credentials for that.

    Attributes:
        target: the address without its scheme.
        metadata: that goes with every call.

    Raises:
        InvalidConfig: a file cannot be read; or a key would go unencrypted to another machine (`INSECURE_ADDRESS`).
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.target = address.removeprefix(TLS_SCHEME)
        self._credentials = credentials
        self.has_tls = credentials.are_for_tls or address.startswith(TLS_SCHEME)
        self.metadata: tuple[tuple[str, str], ...] = ()
        if credentials.api_key is not None:
            if not self.has_tls and not _is_here(self.target):
                raise InvalidConfig(
                    f"a key is not sent unencrypted to {self.target}: say {TLS_SCHEME}{self.target}, or give ca=",
                    reason="INSECURE_ADDRESS",
                    field="address",
                )
            self.metadata = (("authorization", f"Bearer {credentials.api_key}"),)
        # What cannot be read is said now.
        self.channel_credentials()

    @property
    def shows_who_calls(self) -> bool:
        """Whether the server learns who calls: there is a key, or a certificate of the client's own."""
        return bool(self.metadata) or self._credentials.cert is not None

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Read anew, since files are exchanged; None without TLS. Raises InvalidConfig."""
        if not self.has_tls:
            return None
        given = self._credentials
        roots = _system_roots() if given.ca is None else _pem(given.ca, "ca")
        if given.cert is None or given.key is None:
            return grpc.ssl_channel_credentials(roots)
        return grpc.ssl_channel_credentials(roots, _pem(given.key, "key"), _pem(given.cert, "cert"))


def from_environment() -> tuple[str, Credentials]:
    """The server and the credentials that the environment names.

    `ADAMIX_SERVER`, `ADAMIX_API_KEY`, and the files `ADAMIX_CA`, `ADAMIX_CERT`, `ADAMIX_KEY`. Raises InvalidConfig.
    """
    found = {name: os.environ.get(f"ADAMIX_{name.upper()}") or None for name in ("ca", "cert", "key", "api_key")}
    if found["api_key"] is not None:
        found["api_key"] = found["api_key"].strip()
    return os.environ.get("ADAMIX_SERVER") or DEFAULT_ADDRESS, Credentials(**found)


def _is_here(target: str) -> bool:
    """Whether an address is on this machine."""
    if target.startswith("unix:"):
        return True
    try:
        return is_loopback(split_address(target)[0])
    except InvalidConfig:
        return False


def _pem(given: Pem, name: str) -> bytes:
    return given if isinstance(given, bytes) else _read(Path(given), name)


def _read(path: Path, name: str) -> bytes:
    """The bytes of a file of certificates. Raises InvalidConfig with what to do."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise _unusable(name, f"{path} does not exist") from None
    except OSError as error:
        raise _unusable(name, f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise _unusable(name, f"{path} has more than {_MAX_FILE_BYTES:,} bytes")
    return data


def _unusable(name: str, what: str) -> InvalidConfig:
    return InvalidConfig(f"{name}: {what}", reason="TRUST_FILE_INVALID", field=name)


def _system_roots() -> bytes | None:
    """The certificates that this system trusts; None where none are found, for those that grpc brings."""
    for path in map(Path, (ssl.get_default_verify_paths().cafile or "", *_ROOT_FILES)):
        if path.is_file():
            return path.read_bytes()
    return None
