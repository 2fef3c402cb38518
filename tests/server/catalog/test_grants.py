"""Grants: of a task that there is to a tenant that there is, for as long as both are."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from adamix.errors import InvalidRequest, NotFound, Overloaded
from adamix_server.catalog import schema
from adamix_server.catalog.database import Database
from adamix_server.catalog.lineage import CATALOG_FILE
from adamix_server.catalog.rows import Page, VersionRow
from adamix_server.catalog.store import Catalog
from adamix_server.limits.tenants import MAX_GRANTS_PER_TENANT

Add = Callable[..., VersionRow]
ME = "default"


@pytest.fixture(autouse=True)
def tasks(catalog: Catalog, add: Add) -> None:
    for tenant in ("acme", "other"):
        catalog.tenants.create(tenant)
    for task in ("t", "u"):
        add(task, b"v1")
    add("t", b"v1", tenant="acme")


def test_one_is_told_alike_everywhere_and_taken_back(catalog: Catalog) -> None:
    before = catalog.get_task(ME, "t")
    row = catalog.grants.add(ME, "t", "acme")
    assert (row.owner, row.task, row.tenant) == (ME, "t", "acme")
    assert catalog.snapshot().access.grants == {(ME, "t", "acme")}
    assert catalog.grants.list(ME).rows == catalog.grants.list("acme").rows == (row,)
    assert catalog.grants.list("other").rows == ()
    assert catalog.get_task(ME, "t") == before, "the task is as it was"
    snapshot = catalog.snapshot()
    assert catalog.grants.add(ME, "t", "acme") == row
    assert catalog.snapshot() is snapshot
    catalog.grants.remove(ME, "t", "acme")
    assert catalog.snapshot().access.grants == set()
    entries = catalog.audit_log.page(ME).rows[:2]
    assert [(entry.action, entry.resource, entry.detail) for entry in entries] == [
        ("remove_grant", f"tenants/{ME}/tasks/t", "acme"),
        ("add_grant", f"tenants/{ME}/tasks/t", "acme"),
    ]


def test_what_is_not_there_is_neither_lent_nor_taken_back(catalog: Catalog) -> None:
    before = catalog.snapshot()
    for change, words in (
        (lambda: catalog.grants.add(ME, "v", "acme"), "task not found"),
        (lambda: catalog.grants.add("nobody", "t", "acme"), "task not found"),
        (lambda: catalog.grants.add(ME, "t", "nobody"), "tenant not found"),
        (lambda: catalog.grants.remove(ME, "v", "acme"), "task not found"),
        (lambda: catalog.grants.remove(ME, "t", "acme"), "grant not found"),
        (lambda: catalog.grants.remove(ME, "t", "nobody"), "grant not found"),
    ):
        with pytest.raises(NotFound, match=f"^{words}$"):
            change()
    for wrong in ("", "A", "a/b", "x" * 64):
        for change in (
            lambda wrong=wrong: catalog.grants.add(ME, "t", wrong),
            lambda wrong=wrong: catalog.grants.add(ME, wrong, "acme"),
            lambda wrong=wrong: catalog.grants.remove(wrong, "t", "acme"),
            lambda wrong=wrong: catalog.grants.list(wrong),
        ):
            with pytest.raises(InvalidRequest):
                change()
    with pytest.raises(InvalidRequest) as caught:
        catalog.grants.add(ME, "t", ME)
    assert caught.value.reason == "GRANT_TO_OWNER"
    assert catalog.snapshot() is before


def test_they_go_with_the_task_and_do_not_come_back_with_it(catalog: Catalog, add: Add) -> None:
    catalog.grants.add(ME, "t", "acme")
    catalog.grants.add(ME, "u", "acme")
    catalog.snapshot()
    catalog.delete_task(ME, "t")
    add("t", b"v1")
    assert catalog.snapshot().access.grants == {(ME, "u", "acme")}
    assert [row.task for row in catalog.grants.list("acme").rows] == ["u"]


def test_pages(catalog: Catalog) -> None:
    for owner, task, tenant in ((ME, "u", "acme"), (ME, "t", "other"), ("acme", "t", ME), (ME, "t", "acme")):
        catalog.grants.add(owner, task, tenant)
    found, token = [], ""
    while not found or token:
        page = catalog.grants.list(ME, 3, token)
        found.append([(row.owner, row.task, row.tenant) for row in page.rows])
        token = page.next_page_token
    assert found == [[("acme", "t", ME), (ME, "t", "acme"), (ME, "t", "other")], [(ME, "u", "acme")]]


def test_pages_and_their_tokens_tell_nothing_of_what_is_not_listed(catalog: Catalog) -> None:
    for owner, task, tenant in ((ME, "t", "acme"), (ME, "t", "other"), (ME, "u", "acme")):
        catalog.grants.add(owner, task, tenant)
    page = catalog.grants.list(ME, 1, "", lambda task: task == "u")
    assert [row.task for row in page.rows] == ["u"]
    assert page.next_page_token == ""
    assert catalog.grants.list(ME, 1, "", lambda task: False) == Page((), "")


def test_so_many_grants_a_tenant_has(catalog: Catalog, store: Path) -> None:
    names = [f"t{number}" for number in range(MAX_GRANTS_PER_TENANT - 1)]
    database = Database(store / CATALOG_FILE)
    with database.write() as connection:
        now = {"create_time_us": 1, "update_time_us": 1}
        connection.execute(insert(schema.tenants), [{"tenant": name, **now} for name in names])
        task_id = connection.scalar(select(schema.tasks.c.id).where(schema.tasks.c.tenant == ME))
        rows = [{"task_id": task_id, "tenant": name, "create_time_us": 1} for name in names]
        connection.execute(insert(schema.grants), rows)
    database.close()
    catalog.grants.add(ME, "t", "acme")
    with pytest.raises(Overloaded) as caught:
        catalog.grants.add(ME, "t", "other")
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_GRANTS", None)
    assert catalog.grants.add(ME, "t", "acme"), "what there is stays"
    catalog.grants.add("acme", "t", ME)
