"""What tenants are among others: by the newest snapshot, over the server's defaults, and told to every engine."""

import dataclasses
from typing import Any

import pytest

from adamix_server.access.quotas import DEFAULT_SHARES, NO_QUOTAS, Quotas, Shares
from adamix_server.catalog.access import NO_ACCESS, Access, TenantRow
from adamix_server.catalog.rows import Snapshot
from adamix_server.catalog.store import Catalog
from adamix_server.frontend.tenancy import Tenancy
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing


def tenant(name: str, **fields: Any) -> TenantRow:
    return TenantRow(tenant=name, etag="", create_time_us=0, update_time_us=0, **fields)


def access(*rows: TenantRow) -> Access:
    return dataclasses.replace(NO_ACCESS, tenants={row.tenant: row for row in rows})


class View:
    """The one thing of a catalog's view that is asked."""

    def __init__(self, *rows: TenantRow) -> None:
        self.take(*rows)

    def take(self, *rows: TenantRow) -> None:
        self.snapshot = Snapshot(revision=0, tasks={}, access=access(*rows))


def test_each_tenant_has_its_own_or_the_servers_default() -> None:
    view = View(tenant("a", weight=3, quotas=Quotas(queued_tokens=0, max_tasks=5)), tenant("b", service_class="batch"))
    tenancy = Tenancy(view, Quotas(queued_tokens=100, concurrent_calls=7))  # type: ignore[arg-type] # all it asks
    assert tenancy.shares("a") == Shares(weight=3)
    assert tenancy.shares("b") == Shares(service_class="batch")
    assert tenancy.shares("nobody") is DEFAULT_SHARES
    assert tenancy.quotas("a") == Quotas(queued_tokens=0, max_tasks=5, concurrent_calls=7)
    assert tenancy.quotas("b") == tenancy.quotas("nobody") == Quotas(queued_tokens=100, concurrent_calls=7)
    assert tenancy.shares("a") is tenancy.shares("a")
    assert [(row.tenant, row.weight, row.service_class) for row in tenancy.uncommon()] == [
        ("a", 3, "interactive"),
        ("b", 1, "batch"),
    ]


def test_a_newer_snapshot_counts_at_once() -> None:
    view = View(tenant("a", weight=3), tenant("b", weight=2))
    tenancy = Tenancy(view)  # type: ignore[arg-type] # all it asks
    assert (tenancy.shares("a").weight, tenancy.quotas("b").queued_tokens) == (3, None)
    view.take(tenant("a", weight=1), tenant("b", quotas=Quotas(queued_tokens=4)))
    assert (tenancy.shares("a").weight, tenancy.quotas("b").queued_tokens) == (1, 4)
    assert tenancy.uncommon() == []
    view.take()
    assert tenancy.shares("b") is DEFAULT_SHARES


def test_others_could_call_where_there_are_others_and_callers_say_who_they_are() -> None:
    two, one = View(tenant("default"), tenant("a")), View(tenant("default"))
    for view, is_open, is_shared in (
        (two, False, True),
        (two, True, False),
        (one, False, False),
        (View(), True, False),
    ):
        tenancy = Tenancy(view, is_open=is_open)  # type: ignore[arg-type] # all it asks
        assert tenancy.of("default").is_shared is tenancy.of("nobody").is_shared is is_shared
    tenancy = Tenancy(one)  # type: ignore[arg-type] # all it asks
    assert not tenancy.of("default").is_shared
    # As the boundary asks before every call: without quotas it looks no further.
    tenancy = Tenancy(one, Quotas())  # type: ignore[arg-type] # all it asks
    assert tenancy.quotas("default") is tenancy.quotas("nobody") is NO_QUOTAS
    one.take(tenant("default"), tenant("a"))
    assert tenancy.of("default").is_shared


async def test_every_engine_is_told_before_its_first_row_and_when_it_changes(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed("sst2", make_adapter())
    rows = [tenant("a", weight=3)]
    read = Catalog.snapshot
    changes = 0

    def snapshot(catalog: Catalog) -> Snapshot:
        newest = read(catalog)
        return dataclasses.replace(newest, revision=newest.revision + changes, access=access(*rows))

    monkeypatch.setattr(Catalog, "snapshot", snapshot)
    harness = await start_serving()

    def told() -> list[list[tuple[str, int]]]:
        return [[(share.tenant, share.weight) for share in frame.shares] for frame in harness.engine.shares]

    await harness.until(lambda: told() == [[("a", 3)]])
    rows[:] = [tenant("a", weight=3), tenant("b", weight=2)]
    changes = 1
    await harness.until(lambda: len(told()) == 2)
    assert told()[1] == [("a", 3), ("b", 2)]
    harness.kill_engine()
    harness.start_engine()
    await harness.until(lambda: len(told()) == 3)
    assert told()[2] == [("a", 3), ("b", 2)]
    # What is as it was is not said again, and the last one that is like the others ends it.
    changes = 2
    rows[:] = []
    await harness.until(lambda: len(told()) == 4)
    assert told()[3] == []
