"""Certificates of callers. That one is signed by a CA of ours, TLS has seen to; here it becomes somebody.

A row of the catalog for its name decides; else its SPIFFE id says tenant and role. Knows what grpc tells of a
connection.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from adamix_server.access.principal import Principal
from adamix_server.access.refusal import Refusal
from adamix_server.access.rights import ROLES
from adamix_server.catalog.access import Access
from adamix_server.config import DEFAULT_TENANT
from adamix_server.frontend.boundary.identity.keys import principal_of_row
from adamix_server.frontend.boundary.rooms import Address

# grpc.aio.ServicerContext: generic in grpc-stubs, but not when it runs.
Context = Any

_SPIFFE = re.compile(
    r"spiffe://[a-z0-9._-]{1,255}(?:/[A-Za-z0-9._-]+)*?/tenant/(?P<tenant>[a-z0-9._-]+)/role/(?P<role>[a-z]+)"
)
_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a certificate says: its SPIFFE id, if it has one and no other URI, its subject, and for how long."""

    spiffe_id: str
    subject: str
    begin_time_s: float
    expire_time_s: float


class Certificates:
    """Recognises callers by the certificates of their connections."""

    def __init__(self) -> None:
        self._rows: object = None
        self._revoked: frozenset[str] = frozenset()

    def principal_of(
        self, context: Context, access: Access, now_s: float, address: Callable[[], Address | None]
    ) -> Principal:
        """Who has made the connection. Raises Refusal."""
        pem = context.auth_context().get("x509_pem_cert")
        if not pem:
            raise Refusal("missing")
        shown = _read(bytes(pem[0]))
        if shown is None:
            raise Refusal("certificate")
        name = (shown.spiffe_id or shown.subject)[:_MAX_NAME_CHARS]
        # A connection may outlive the certificate that it was made with.
        if now_s >= shown.expire_time_s:
            raise Refusal("expired", name)
        if now_s < shown.begin_time_s:
            raise Refusal("not_yet", name)
        names = [found for found in (shown.spiffe_id, shown.subject) if found]
        for found in names:
            row = access.keys.get(access.certificates.get(found, ""))
            if row is not None:
                principal = principal_of_row(row, access, now_s, address)
                return Principal(
                    principal.name,
                    principal.tenant,
                    principal.rights,
                    principal.task_pattern,
                    principal.key_id,
                    min(principal.expire_time_s, shown.expire_time_s),
                )
        # What was revoked by name does not come back by what it says of itself.
        if not self._revoked_names(access).isdisjoint(names):
            raise Refusal("revoked", name)
        said = _SPIFFE.fullmatch(shown.spiffe_id)
        if said is None or shown.spiffe_id.count("/tenant/") != 1 or (rights := ROLES.get(said["role"])) is None:
            raise Refusal("certificate", name)
        # As of a token's scope: who signs names within one tenant must not make operators of the whole server.
        if "admin" in rights and said["tenant"] != DEFAULT_TENANT:
            raise Refusal("certificate", name)
        if said["tenant"] not in access.tenants:
            raise Refusal("tenant_gone", name)
        return Principal(shown.spiffe_id, said["tenant"], rights, expire_time_s=shown.expire_time_s)

    def _revoked_names(self, access: Access) -> frozenset[str]:
        """Names of certificates whose rows are revoked. Every key is looked at, once they have changed."""
        if self._rows is not access.keys:
            self._rows = access.keys
            self._revoked = frozenset(
                row.certificate_name
                for row in access.keys.values()
                if row.certificate_name and row.revoke_time_us is not None
            )
        return self._revoked


@functools.lru_cache(maxsize=4096)
def _read(pem: bytes) -> _Shown | None:
    """None for a certificate that cannot be read, or says more than one thing."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        subject = certificate.subject.rfc4514_string()
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        uris = []
        for extension in certificate.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType):
        return None
    spiffe_ids = [uri for uri in uris if uri.startswith("spiffe://")]
    if spiffe_ids and len(uris) != 1:
        return None
    return _Shown(
        spiffe_ids[0] if spiffe_ids else "",
        subject,
        begin.timestamp(),
        end.timestamp(),
    )
