"""Certificates of callers: their SPIFFE ids, the catalog's rows for them, and their time."""

import datetime as dt
import time
from typing import Any

import pytest

from adamix_server.access.api_keys import make
from adamix_server.access.refusal import Refusal
from adamix_server.access.rights import ROLES
from adamix_server.catalog.access import Access
from adamix_server.frontend.boundary.identity.certificates import Certificates
from adamix_testing.credentials import Authority, Shown, key_row, make_access

CA = Authority()
DAY = dt.timedelta(days=1)
CALLER = "spiffe://example.org/tenant/acme/role/caller"


def recognise(cert: bytes, access: Access | None = None, now_s: float | None = None) -> Any:
    return Certificates().principal_of(
        Shown(cert=cert), access or make_access(), time.time() if now_s is None else now_s, lambda: None
    )


def refusal(cert: bytes, access: Access | None = None, now_s: float | None = None) -> str:
    with pytest.raises(Refusal) as said:
        recognise(cert, access, now_s)
    return said.value.kind


@pytest.mark.parametrize(
    ("uri", "tenant", "role"),
    [
        (CALLER, "acme", "caller"),
        ("spiffe://example.org/ns/prod/sa/x/tenant/acme/role/publisher", "acme", "publisher"),
        ("spiffe://example.org/tenant/default/role/operator", "default", "operator"),
    ],
)
def test_a_spiffe_id_says_tenant_and_role(uri: str, tenant: str, role: str) -> None:
    principal = recognise(CA.issue("svc", [uri]).cert)
    assert (principal.name, principal.tenant, principal.rights) == (uri, tenant, ROLES[role])
    assert principal.expire_time_s == pytest.approx(time.time() + 30 * 86_400, abs=60), "its own"


@pytest.mark.parametrize(
    ("kind", "uris"),
    [
        ("certificate", []),
        ("certificate", ["https://example.org/tenant/acme/role/caller"]),
        ("certificate", ["spiffe://example.org/tenant/acme/role/king"]),
        ("certificate", ["spiffe://example.org/tenant/acme/role/caller/"]),
        ("certificate", ["spiffe://example.org/tenant/acme"]),
        ("certificate", ["spiffe://example.org/tenant/ACME/role/caller"]),
        ("certificate", ["spiffe://example.org/tenant/x/role/caller/tenant/acme/role/operator"]),
        ("certificate", ["spiffe://example.org/tenant/acme/role/caller?a=b"]),
        # An operator of the whole server, said by whoever may sign for one tenant.
        ("certificate", ["spiffe://example.org/tenant/acme/role/operator"]),
        ("certificate", [CALLER, "spiffe://example.org/tenant/acme/role/operator"]),
        ("tenant_gone", ["spiffe://example.org/tenant/deleted/role/caller"]),
    ],
)
def test_who_is_nobody(kind: str, uris: list[str]) -> None:
    assert refusal(CA.issue("svc", uris).cert) == kind


def test_a_connection_may_outlive_its_certificate() -> None:
    cert = CA.issue("svc", [CALLER], begin=-2 * DAY, end=DAY).cert
    now_s = time.time()
    assert recognise(cert, now_s=now_s)
    assert refusal(cert, now_s=now_s + 2 * 86_400) == "expired"
    assert refusal(cert, now_s=now_s - 3 * 86_400) == "not_yet"


def test_no_certificate_and_a_damaged_one() -> None:
    assert refusal(b"") == "missing"
    assert refusal(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") == "certificate"


@pytest.mark.parametrize(("name", "uris"), [("CN=svc", []), (CALLER, [CALLER])])
def test_a_row_for_its_name_decides(name: str, uris: list[str]) -> None:
    cert, (_, key) = CA.issue("svc", uris).cert, make()
    fields: dict[str, Any] = {"digest": "", "certificate_name": name, "tenant": "default", "rights": ROLES["owner"]}
    row = key_row(key, **fields, task_pattern="a*", expire_time_us=4_000_000_000_000_000)
    principal = recognise(cert, make_access(row))
    assert (principal.name, principal.tenant, principal.rights) == (f"keys/{key.id}", "default", ROLES["owner"])
    assert (principal.task_pattern, principal.key_id) == ("a*", key.id)
    assert principal.expire_time_s < time.time() + 31 * 86_400, "the earlier of the two"
    assert refusal(cert, make_access(key_row(key, **fields, expire_time_us=1))) == "expired"
    assert refusal(cert, make_access(key_row(key, **fields, networks=("10.0.0.0/8",)))) == "network"
    revoked = make_access(key_row(key, **fields, revoke_time_us=1))
    assert refusal(cert, revoked) == "revoked", "it does not come back by what it says of itself"


def test_revoked_names_follow_the_snapshot() -> None:
    certificates, cert, (_, key) = Certificates(), CA.issue("svc", [CALLER]).cert, make()
    row = key_row(key, digest="", certificate_name=CALLER, revoke_time_us=1)

    def recognised(access: Access) -> bool:
        try:
            certificates.principal_of(Shown(cert=cert), access, time.time(), lambda: None)
        except Refusal:
            return False
        return True

    assert [recognised(access) for access in (make_access(), make_access(row), make_access())] == [True, False, True]
