"""Who may call, as the catalog tells it: tenants, keys and grants, as immutable values of one revision."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import msgspec

from adamix_server.access.quotas import NO_QUOTAS, Quotas, ServiceClass
from adamix_server.access.rights import Right


class TenantRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One tenant. `etag` changes with every change of it; `quotas` are its own alone, without the server's defaults."""

    tenant: str
    etag: str
    create_time_us: int
    update_time_us: int
    weight: int = 1
    service_class: ServiceClass = "interactive"
    quotas: Quotas = NO_QUOTAS


class KeyRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One API key, or the name of a certificate that stands for one.

    Attributes:
        digest: sha256 of the whole key; empty for a certificate's.
        networks: in CIDR notation, of which it may be used from one; empty for from anywhere.
        expire_time_us, revoke_time_us: None for never.
        certificate_name: SPIFFE id or subject of the certificate; empty for a key that is sent.
    """

    id: str
    tenant: str
    digest: str
    rights: frozenset[Right]
    task_pattern: str
    networks: tuple[str, ...]
    display_name: str
    create_time_us: int
    expire_time_us: int | None
    revoke_time_us: int | None
    certificate_name: str


class GrantRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task of `owner`, lent to `tenant` for answers."""

    owner: str
    task: str
    tenant: str
    create_time_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """All of it, at one revision.

    Attributes:
        tenants: by id.
        keys: by id, also those revoked or expired.
        certificates: ids of keys by certificate name, of those not revoked.
        grants: (owner, task, tenant).
    """

    tenants: Mapping[str, TenantRow]
    keys: Mapping[str, KeyRow]
    certificates: Mapping[str, str]
    grants: Set[tuple[str, str, str]]


NO_ACCESS = Access(tenants={}, keys={}, certificates={}, grants=frozenset())
