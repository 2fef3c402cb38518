"""What is written down of calls that have ended: who, what, how; some of a source each for itself, the rest counted."""

import pytest

from adamix_server.access.entries import Entry
from adamix_server.access.principal import NOBODY, Principal
from adamix_server.frontend.boundary import witness as witnesses
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.boundary.rooms import Origin
from adamix_server.frontend.boundary.witness import Witness
from adamix_server.limits.audit import MAX_AUDIT_BURST, MAX_AUDIT_BURST_OF_TENANT, MAX_WAITING_ENTRIES

GET = "adamix.v1.AdapterService/GetTask"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def witness(clock: Clock) -> Witness:
    return Witness(clock)


def principal(name: str, tenant: str = "acme", *rights: str) -> Principal:
    return Principal(name, tenant, frozenset(rights or ("read",)))  # type: ignore[arg-type]


def call(who: Principal = NOBODY, resource: str = "", host: str = "10.0.0.7") -> Call:
    return Call("id", f"/{GET}", 0.0, who, resource, Origin(f"ipv4:{host}:5", host))


def said(entry: Entry) -> tuple[str, ...]:
    return entry.tenant, entry.principal, entry.peer, entry.method, entry.resource, entry.code, entry.reason


def test_an_entry_tells_who_did_what_and_how_it_ended(witness: Witness) -> None:
    seen = call(principal("keys/k1"), "tenants/acme/tasks/t")
    seen.detail = "for the audit alone"
    witness.saw(seen, GET, "NOT_FOUND", "NOT_FOUND")
    (entry,) = witness.drain()
    assert said(entry) == (
        "acme", "keys/k1", "ipv4:10.0.0.7:5", GET, "tenants/acme/tasks/t", "NOT_FOUND", "NOT_FOUND",
    )  # fmt: skip
    assert entry.detail == "for the audit alone"
    assert witness.drain() == []


def test_a_change_that_has_written_its_own_entry_has_no_other(witness: Witness) -> None:
    seen = call(principal("keys/k1"))
    assert seen.actor.entries == []
    assert seen.actor is seen.actor
    seen.actor.entries.append(17)
    witness.saw(seen, GET, "OK")
    assert witness.drain() == []
    # It was undone.
    witness.saw(seen, GET, "UNAVAILABLE", "STORE_LOST")
    assert len(witness.drain()) == 1


def test_an_operator_acts_in_the_matter_of_another_tenant(witness: Witness) -> None:
    operator = principal("keys/op", "default", "admin")
    for who, resource in [
        (operator, "tenants/acme/tasks/t"),
        (operator, "tenants/acme"),
        (operator, "t"),
        (operator, "tenants/../tasks/t"),
        (principal("keys/k1", "other"), "tenants/acme/tasks/t"),
    ]:
        witness.saw(call(who, resource), GET, "OK")
    assert [entry.tenant for entry in witness.drain()] == ["acme", "acme", "default", "default", "other"]


def test_so_many_in_a_row_have_an_entry_each(witness: Witness, clock: Clock) -> None:
    for _ in range(MAX_AUDIT_BURST + 1234):
        witness.saw(call(principal("keys/k1"), "tenants/acme/tasks/t"), GET, "OK")
    assert len(witness.drain()) == MAX_AUDIT_BURST
    clock.now += 1.9
    witness.saw(call(principal("keys/k1")), GET, "OK")
    assert witness.drain() == []
    clock.now += 0.1
    witness.saw(call(principal("keys/k1")), GET, "OK")
    assert len(witness.drain()) == 1
    clock.now += 8
    (more,) = witness.drain()
    assert said(more) == ("acme", "keys/k1", "10.0.0.7", GET, "", "OK", "")
    assert more.detail == "and 1,235 more"


def test_so_many_in_a_row_have_all_callers_of_a_tenant(witness: Witness, clock: Clock) -> None:
    for i in range(MAX_AUDIT_BURST_OF_TENANT + 7):
        witness.saw(call(principal(f"keys/{i}")), GET, "OK")
    assert len(witness.drain()) == MAX_AUDIT_BURST_OF_TENANT
    witness.saw(call(principal("keys/k", "other")), GET, "OK")
    assert len(witness.drain()) == 1
    clock.now += 2
    for i in range(20):
        witness.saw(call(principal(f"keys/new-{i}")), GET, "OK")
    assert len(witness.drain()) == 10
    clock.now += witnesses.MORE_S
    assert len(witness.drain()) == 17


def test_nobody_is_counted_for_another(witness: Witness, clock: Clock) -> None:
    for _ in range(100):
        witness.saw(call(principal("keys/k1")), GET, "OK")
        witness.saw(call(principal("keys/k2")), GET, "NOT_FOUND", "NOT_FOUND")
    assert len(witness.drain()) == 2 * MAX_AUDIT_BURST
    clock.now += witnesses.MORE_S
    more = {(entry.principal, entry.code): entry.detail for entry in witness.drain()}
    assert more == {("keys/k1", "OK"): "and 70 more", ("keys/k2", "NOT_FOUND"): "and 70 more"}


def test_those_whom_nobody_knows_share_what_one_has(witness: Witness, clock: Clock) -> None:
    for i in range(5000):
        witness.saw(call(host=f"10.0.{i >> 8}.{i & 255}"), GET, "UNAUTHENTICATED", "KEY_INVALID")
    assert len(witness.drain()) == MAX_AUDIT_BURST
    witness.saw(call(principal("keys/k1")), GET, "OK")
    assert len(witness.drain()) == 1
    clock.now += witnesses.MORE_S
    more = witness.drain()
    # Many kinds are one.
    assert len(more) == MAX_WAITING_ENTRIES + 1
    assert sum(int(entry.detail.split()[1].replace(",", "")) for entry in more) == 5000 - MAX_AUDIT_BURST
    assert said(more[-1]) == ("", "", "", "", "", "UNAUTHENTICATED", "")


def test_so_many_entries_wait(witness: Witness, clock: Clock) -> None:
    for i in range(MAX_WAITING_ENTRIES + 7):
        witness.saw(call(principal(f"keys/{i}", f"t{i}")), GET, "OK")
    assert len(witness.drain()) == MAX_WAITING_ENTRIES
    assert len(witness.drain(is_last=True)) == 7


def test_sources_that_were_long_silent_are_forgotten(
    witness: Witness, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # And their tenant.
    monkeypatch.setattr(witnesses, "_MAX_SOURCES", 4)
    for name in "abcd":
        witness.saw(call(principal(name)), GET, "OK")
    # Of one too many nothing is told but the number.
    assert [entry.principal for entry in witness.drain()] == ["a", "b", "c"]
    clock.now += 60
    witness.saw(call(principal("d")), GET, "OK")
    assert [(entry.principal, entry.detail) for entry in witness.drain()] == [("d", ""), ("d", "and 1 more")]
