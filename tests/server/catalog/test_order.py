"""What came first is decided by ids and revisions: a clock that is set back reorders nothing. Times are for people."""

import itertools
from collections.abc import Callable

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from adamix_server.catalog import changes, retries
from adamix_server.catalog.rows import VersionRow
from adamix_server.catalog.store import Catalog

Add = Callable[..., VersionRow]
ME = "default"


@pytest.fixture(autouse=True)
def clock_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at it is an hour before the last one."""
    start_us, looks = changes.now_us(), itertools.count()
    monkeypatch.setattr(changes, "now_us", lambda: start_us - next(looks) * 3_600_000_000)


def test_versions_are_listed_by_when_they_were_registered(catalog: Catalog, add: Add) -> None:
    digests = [add("t", b"%d" % number).digest for number in range(5)]
    rows = catalog.list_versions(ME, "t").rows
    assert [row.digest for row in rows] == digests[::-1]
    assert [row.create_time_us for row in rows] == sorted(row.create_time_us for row in rows)
    found, token = list[str](), ""
    while not found or token:
        page = catalog.list_versions(ME, "t", 2, token)
        found += [row.digest for row in page.rows]
        token = page.next_page_token
        # One that comes meanwhile is newer than all that is still to come.
        add("t", b"new %d" % len(found), make_live=False)
    assert found == digests[::-1]


def test_going_back_goes_to_what_was_live_before(catalog: Catalog, add: Add) -> None:
    first, second, third = (add("t", b"%d" % number).digest for number in range(3))
    for digest in (second, first):
        assert [version.digest for version in catalog.rollback(ME, "t").live] == [digest]
    assert third not in {share.digest for share in catalog.get_task(ME, "t").traffic}


def test_the_longest_pinned_comes_first(catalog: Catalog, add: Add) -> None:
    digests = [add("t", b"%d" % number).digest for number in range(4)]
    for digest in digests:
        catalog.set_pinned(ME, "t", digest, True)
    assert catalog.pinned() == tuple(digests)


def test_the_oldest_answers_are_forgotten_first(catalog: Catalog, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_REQUEST_IDS_PER_TENANT", 3)
    for number in range(5):
        add("t", b"%d" % number, request_id=f"id-{number}")
    before = catalog.revision()
    for number in (2, 3, 4):
        add("t", b"%d" % number, request_id=f"id-{number}")
    assert catalog.revision() == before, "their times are the earliest, and they are the newest"
    add("t", b"0", request_id="id-0")
    assert catalog.revision() == before + 1


def test_neither_a_refresh_nor_a_purge_reads_the_audit(catalog: Catalog, add: Add) -> None:
    digest = add("t", b"1").digest
    catalog.snapshot()
    add("t", b"2")
    catalog.delete_version(ME, "t", digest)
    statements: list[str] = []

    def note(_c: object, _u: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        catalog.snapshot()
        assert catalog.retired() == (digest,)
        assert catalog.purge(digest, unless_registered_since=catalog.revision())
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert any("changes" in statement for statement in statements)
    assert not any("audit" in statement for statement in statements)
