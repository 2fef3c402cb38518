"""Keys, tokens, certificates and their files, made when a test runs; and what a catalog would say of them."""

import datetime as dt
import ipaddress
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from adamix_server.access import api_keys
from adamix_server.access.rights import ROLES, Right
from adamix_server.catalog.access import Access, KeyRow, TenantRow
from adamix_server.config import TlsSettings

ISSUER, AUDIENCE = "https://issuer.example", "adamix"
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in PEM."""

    cert: bytes
    key: bytes


class Authority:
    """A CA."""

    def __init__(self, name: str = "ca") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.cert = _pem(self._sign(self._name, self._key.public_key(), (), is_ca=True))

    def issue(
        self,
        name: str = "server",
        uris: Sequence[str] = (),
        *,
        begin: dt.timedelta = -_DAY,
        end: dt.timedelta = 30 * _DAY,
    ) -> Issued:
        """A certificate for this machine, or for whom the URIs say; it begins and ends so long from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        here: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        signed = self._sign(_name(name), key.public_key(), [*here, *names], begin=begin, end=end)
        return Issued(_pem(signed), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _sign(
        self,
        name: x509.Name,
        public_key: Any,
        names: Iterable[x509.GeneralName],
        *,
        is_ca: bool = False,
        begin: dt.timedelta = -_DAY,
        end: dt.timedelta = 30 * _DAY,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        )
        if names := list(names):
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def write_pair(directory: Path, issued: Issued, client_ca: bytes | None = None) -> TlsSettings:
    """The files of a server's pair; written anew if they are there."""
    settings = TlsSettings(
        cert=directory / "cert.pem",
        key=directory / "key.pem",
        client_ca=None if client_ca is None else directory / "client_ca.pem",
    )
    settings.cert.write_bytes(issued.cert)
    settings.key.write_bytes(issued.key)
    if settings.client_ca is not None and client_ca is not None:
        settings.client_ca.write_bytes(client_ca)
    return settings


class Issuer:
    """An issuer of tokens, with a key of each kind."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "RS256": rsa.generate_private_key(65_537, 2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }

    def jwk(self, algorithm: str, **more: Any) -> dict[str, Any]:
        """The public part of a key, under the name of its algorithm."""
        maker = jwt.get_algorithm_by_name(algorithm)
        return {**json.loads(maker.to_jwk(self.keys[algorithm].public_key())), "kid": algorithm, "use": "sig", **more}

    def jwks(self, *algorithms: str) -> dict[str, Any]:
        return {"keys": [self.jwk(algorithm) for algorithm in algorithms or self.keys]}

    def write(self, path: Path, *algorithms: str) -> Path:
        path.write_text(json.dumps(self.jwks(*algorithms)), encoding="ascii")
        return path

    def token(self, algorithm: str = "EdDSA", headers: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A good token of tenant acme at second 1,000, but for these claims; None leaves one out."""
        default = {"iss": ISSUER, "aud": AUDIENCE, "nbf": 900, "exp": 2_000, "sub": "ann", "tenant": "acme"}
        said = {**default, "scope": "infer read", **claims}
        payload = {name: value for name, value in said.items() if value is not None}
        header = {"kid": algorithm, **(headers or {})}
        return jwt.encode(payload, self.keys[algorithm], algorithm, {k: v for k, v in header.items() if v is not None})


class Shown:
    """A call's context, as far as credentials are read from it."""

    def __init__(self, *metadata: tuple[str, str | bytes], peer: str = "ipv4:10.1.2.3:4", cert: bytes = b"") -> None:
        self.metadata = metadata
        self._peer = peer
        self._cert = cert

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._cert]} if self._cert else {}


def bearer(credential: str) -> tuple[str, str]:
    return "authorization", f"Bearer {credential}"


def key_row(
    key: api_keys.ApiKey, tenant: str = "acme", rights: Iterable[Right] = ROLES["caller"], **fields: Any
) -> KeyRow:
    """The row of a key that counts, but for these fields."""
    row = KeyRow(
        id=key.id,
        tenant=tenant,
        digest=key.digest,
        rights=frozenset(rights),
        task_pattern="",
        networks=(),
        display_name="",
        create_time_us=0,
        expire_time_us=None,
        revoke_time_us=None,
        certificate_name="",
    )
    return msgspec.structs.replace(row, **fields)


def make_access(*rows: KeyRow, tenants: Iterable[str] = ("default", "acme")) -> Access:
    """What a catalog of these keys and tenants says."""
    return Access(
        tenants={name: TenantRow(tenant=name, etag="1", create_time_us=0, update_time_us=0) for name in tenants},
        keys={row.id: row for row in rows},
        certificates={
            row.certificate_name: row.id for row in rows if row.certificate_name and row.revoke_time_us is None
        },
        grants=frozenset(),
    )


def make_clock(now_s: float = 1_000.0) -> tuple[list[float], Callable[[], float]]:
    """A clock, and the list whose only element it shows."""
    hands = [now_s]
    return hands, lambda: hands[0]


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
