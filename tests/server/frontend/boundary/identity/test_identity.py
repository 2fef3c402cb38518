"""Who makes a call: every kind of credential that does not count, its cause, and the one answer to all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import Unauthenticated
from adamix_server.access import api_keys
from adamix_server.access.rights import ROLES
from adamix_server.catalog.access import Access
from adamix_server.config import AccessSettings
from adamix_server.frontend.boundary.identity import keys
from adamix_server.frontend.boundary.identity.identity import Identity
from adamix_server.limits.messages import MAX_CREDENTIAL_BYTES
from adamix_testing.credentials import Shown, bearer, key_row, make_access, make_clock

TEXT, KEY = api_keys.make()
OTHER_TEXT, OTHER = api_keys.make()
# Of the same id with another secret, and a right checksum.
FORGED = f"adx_{KEY.id}_{OTHER_TEXT.rpartition('_')[2][:-6]}"
FORGED += api_keys._checksum(FORGED)


class Door:
    """An identity, and what its hook was told."""

    def __init__(self, access: Access, auth: tuple[Any, ...] = ("keys",), now_s: float = 1_000.0, **more: Any) -> None:
        self.access = access
        self.hands, clock = make_clock(now_s)
        self.refused: list[tuple[str, str]] = []
        self.identity = Identity(
            AccessSettings(auth=auth),
            lambda: self.access,
            on_refused=lambda kind, name: self.refused.append((kind, name)),
            clock=clock,
            **more,
        )

    def refusal(self, context: Shown) -> str:
        with pytest.raises(Unauthenticated) as said:
            self.identity(context)
        assert (said.value.reason, said.value.message) == (
            "KEY_INVALID",
            "this server asks for a valid credential, and the call has none",
        )
        assert said.value.__context__ is None, "the answer carries nothing of the cause"
        ((kind, name),) = self.refused
        assert not any(secret in name for secret in (TEXT, FORGED, OTHER_TEXT))
        return kind


def test_a_key_is_its_tenant_with_its_rights() -> None:
    door = Door(
        make_access(key_row(KEY, rights=ROLES["publisher"], task_pattern="sup-*", expire_time_us=2_000_000_000))
    )
    principal = door.identity(Shown(("x-other", "1"), bearer(TEXT)))
    assert (principal.name, principal.tenant, principal.rights) == (f"keys/{KEY.id}", "acme", ROLES["publisher"])
    assert (principal.task_pattern, principal.key_id, principal.expire_time_s) == ("sup-*", KEY.id, 2_000.0)
    assert door.identity(Shown(("authorization", f"bearer {TEXT}"))) == principal, "schemes have no capitals"
    assert not door.refused


@pytest.mark.parametrize(
    ("kind", "metadata"),
    [
        ("missing", ()),
        ("missing", (("x-api-key", TEXT),)),
        ("malformed", (bearer(TEXT), bearer(TEXT))),
        ("malformed", (("authorization", TEXT),)),
        ("malformed", (("authorization", f"Basic {TEXT}"),)),
        ("malformed", (("authorization", "Bearer "),)),
        ("malformed", (("authorization", ""),)),
        ("malformed", (("authorization", b"Bearer \x00"),)),
        ("malformed", (bearer("ädx"),)),
        ("malformed", (bearer("a.b.c"),)),
        ("malformed", (bearer(f" {TEXT}"),)),
        ("mistyped", (bearer(TEXT[:-1] + ("0" if TEXT[-1] != "0" else "1")),)),
        ("mistyped", (bearer(TEXT + " "),)),
        ("mistyped", (bearer(f"{TEXT},{TEXT}"),)),
        ("mistyped", (bearer("adx_" + "a" * (MAX_CREDENTIAL_BYTES - 11)),)),
        ("malformed", (bearer("adx_" + "a" * (MAX_CREDENTIAL_BYTES - 10)),)),
        ("unknown", (bearer(OTHER_TEXT),)),
        ("wrong_secret", (bearer(FORGED),)),
    ],
)
def test_what_is_no_key_of_ours(kind: str, metadata: tuple[Any, ...]) -> None:
    assert Door(make_access(key_row(KEY))).refusal(Shown(*metadata)) == kind


def test_a_credential_of_the_most_bytes_is_read() -> None:
    row = key_row(KEY)
    largest = "adx_" + "a" * (MAX_CREDENTIAL_BYTES - len("Bearer adx_"))
    assert Door(make_access(row)).refusal(Shown(bearer(largest))) == "mistyped"
    assert Door(make_access(row)).refusal(Shown(bearer(largest + "a"))) == "malformed"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("revoked", {"revoke_time_us": 1}),
        ("revoked", {"revoke_time_us": 1, "expire_time_us": 1}),
        ("expired", {"expire_time_us": 1_000_000_000}),
        ("tenant_gone", {"tenant": "deleted"}),
        ("network", {"networks": ("10.2.0.0/16", "2001:db8::/32")}),
        # A key that stands for a certificate cannot be sent, whatever its digest is.
        ("unknown", {"digest": "", "certificate_name": "CN=x"}),
    ],
)
def test_a_key_that_does_not_count_here_and_now(kind: str, fields: dict[str, Any]) -> None:
    door = Door(make_access(key_row(KEY, **fields)))
    assert door.refusal(Shown(bearer(TEXT))) == kind
    assert door.refused[0][1] == f"keys/{KEY.id}"


def test_a_clock_that_jumps_decides_anew() -> None:
    door = Door(make_access(key_row(KEY, expire_time_us=2_000_000_000)), now_s=1_999.999)
    assert door.identity(Shown(bearer(TEXT)))
    door.hands[0] = 2_000.0
    assert door.refusal(Shown(bearer(TEXT))) == "expired"
    door.hands[0] = -5.0
    assert door.identity(Shown(bearer(TEXT)))


def test_the_newest_snapshot_decides() -> None:
    door = Door(make_access())
    basis = door.identity.basis()
    door.access = make_access(key_row(KEY))
    assert door.identity.basis()[0] is not basis[0]
    assert door.identity(Shown(bearer(TEXT))).tenant == "acme"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("revoked", {"revoke_time_us": 1}),
        ("expired", {"expire_time_us": 1_000_000_000}),
        ("network", {"networks": ("10.2.0.0/16",)}),
        ("tenant_gone", {"tenant": "deleted"}),
        ("wrong_secret", {"digest": OTHER.digest}),
    ],
)
def test_a_key_that_was_recognised_before_is_judged_by_its_newest_row(kind: str, fields: dict[str, Any]) -> None:
    door = Door(make_access(key_row(KEY)))
    for _ in range(2):
        assert door.identity(Shown(bearer(TEXT))).tenant == "acme"
    door.access = make_access(key_row(KEY, **fields))
    assert door.refusal(Shown(bearer(TEXT))) == kind


def test_a_key_that_was_recognised_before_has_its_newest_rights() -> None:
    door = Door(make_access(key_row(KEY, rights=ROLES["owner"])))
    assert door.identity(Shown(bearer(TEXT))).rights == ROLES["owner"]
    door.access = make_access(key_row(KEY, rights=ROLES["caller"]))
    assert door.identity(Shown(bearer(TEXT))).rights == ROLES["caller"]
    door.access = make_access()
    assert door.refusal(Shown(bearer(TEXT))) == "unknown"


def test_a_key_of_some_networks_counts_from_no_other_though_it_was_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(make_access(key_row(KEY, networks=("10.2.0.0/16",))))
    monkeypatch.setattr(keys, "is_within", lambda address, networks: True)
    assert door.identity(Shown(bearer(TEXT)))
    monkeypatch.setattr(keys, "is_within", lambda address, networks: False)
    assert door.refusal(Shown(bearer(TEXT))) == "network"


def test_of_keys_that_were_recognised_some_thousands_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MOST_KNOWN", 2)
    made = [api_keys.make() for _ in range(5)]
    known, access = keys.Keys(), make_access(*(key_row(key) for _, key in made))
    for text, key in [*made, *made]:
        assert known.principal_of(text, access, 0.0, lambda: None).key_id == key.id
        assert len(known._known) <= 2


def test_an_unknown_id_is_compared_as_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real: Callable[[str, str], bool] = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: (compared.append(len(a)), real(a, b))[1])
    Door(make_access(key_row(KEY))).refusal(Shown(bearer(OTHER_TEXT)))
    Door(make_access(key_row(KEY))).refusal(Shown(bearer(FORGED)))
    assert compared == [64, 64]


def test_a_key_is_nothing_to_a_server_that_asks_for_tokens_or_certificates(tmp_path: Path) -> None:
    assert Door(make_access(key_row(KEY)), auth=("mtls",)).refusal(Shown(bearer(TEXT))) == "malformed"


def test_with_keys_and_certificates_the_key_is_asked_for_and_decides() -> None:
    door = Door(make_access(key_row(KEY)), auth=("keys", "mtls"))
    assert door.identity(Shown(bearer(TEXT), cert=b"of somebody")).key_id == KEY.id
    assert door.refusal(Shown(cert=b"of somebody")) == "missing"


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_nothing_that_is_sent_is_anything_but_refused(value: str | bytes) -> None:
    for sent in (value, f"Bearer {value!r}", f"Bearer adx_{value!s}"):
        Door(make_access(key_row(KEY))).refusal(Shown(("authorization", sent)))


def test_nobody_comes_in_by_an_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(text: str, *args: Any) -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr(keys, "principal_of_key", broken)
    with pytest.raises(Unauthenticated):
        Door(make_access(key_row(KEY))).identity(Shown(bearer(TEXT)))
    (record,) = caplog.records
    assert TEXT not in str(record.__dict__)
