"""The audit: a chain that nobody changes afterwards without being found, beside several writers and an end of days."""

import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adamix.errors import DataLoss, InvalidRequest
from adamix_client.audit_chain import COLUMNS
from adamix_server.access.entries import Entry
from adamix_server.catalog import audit, audit_chain
from adamix_server.catalog.audit import AuditLog, EntryRow
from adamix_server.catalog.audit_chain import Verified
from adamix_server.catalog.database import Database

DAY_US = 86_400_000_000
# One with a hash, but not its own.
STRANGER = "INSERT INTO audit SELECT {0}, 1, '', '', '', 'M', '', '', 'OK', '', '', '', 0, hash FROM audit WHERE id = 1"
Edit = Callable[..., None]


@pytest.fixture
def database(store: Path) -> Iterator[Database]:
    database = Database(store / "catalog.db")
    yield database
    database.close()


@pytest.fixture
def log(database: Database) -> AuditLog:
    return AuditLog(database)


@pytest.fixture
def edit(database: Database) -> Edit:
    """What somebody with the file in hand does to it."""

    def edit(*statements: str) -> None:
        with sqlite3.connect(database.path) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return edit


def entries(number: int, tenant: str = "default", since_us: int = 1_000_000) -> list[Entry]:
    return [Entry.of(since_us + i, tenant=tenant, method="M", resource=f"r{i}", detail="é\n'") for i in range(number)]


def fault(found: Verified) -> tuple[int, str] | None:
    return None if found.fault is None else (found.fault.id, found.fault.how)


def ids(page: Any) -> list[int]:
    return [row.id for row in page.rows]


def test_an_entry_is_what_was_written(log: AuditLog) -> None:
    entry = Entry.of(
        7,
        tenant="acme",
        principal="keys/abc",
        peer="ipv4:10.0.0.7:1",
        method="adamix.v1.AdapterService/GetTask",
        resource="tenants/acme/tasks/t",
        digest="d" * 64,
        code="NOT_FOUND",
        reason="NOT_FOUND",
        detail="x",
    )
    log.append([entry])
    (row,) = log.page("acme").rows
    assert {name: getattr(row, name) for name in Entry.__struct_fields__} == {
        name: getattr(entry, name) for name in Entry.__struct_fields__
    }
    assert (row.id, row.action, row.revision, len(row.hash)) == (1, "", 0, 64)
    assert log.verify() == Verified(entries=1, first_id=1, last_id=1, last_hash=row.hash)


def test_an_empty_one_is_whole(log: AuditLog) -> None:
    assert log.verify() == Verified(entries=0, first_id=0, last_id=0, last_hash="0" * 64)
    assert log.page(None).rows == ()


class TestPages:
    def test_the_newest_come_first_and_a_tenant_sees_its_own(self, log: AuditLog) -> None:
        log.append([*entries(3), *entries(2, "acme")])
        assert ids(log.page(None)) == [3, 5, 2, 4, 1]  # by time, which is the same for two and two
        assert ids(log.page("acme")) == [5, 4]
        assert ids(log.page("nobody")) == []
        assert ids(log.page("default", since_us=1_000_001)) == [3, 2]

    def test_pages_repeat_and_leave_out_nothing(self, log: AuditLog) -> None:
        log.append([*entries(5), *entries(5, "acme"), *entries(5)])
        whole = ids(log.page(None))
        seen, token = list[int](), ""
        while True:
            page = log.page(None, page_size=4, page_token=token)
            seen += ids(page)
            log.append(entries(1, since_us=9_000_000))  # newer ones move nothing
            if not (token := page.next_page_token):
                break
        assert seen == whole
        assert sorted(seen) == list(range(1, 16))

    def test_following_goes_on_after_an_entry(self, log: AuditLog) -> None:
        log.append([*entries(3), *entries(3, "acme")])
        first = log.page("acme", after_id=1, page_size=2)
        assert ids(first) == [4, 5]
        assert ids(log.page("acme", after_id=1, page_size=2, page_token=first.next_page_token)) == [6]
        assert ids(log.page("acme", after_id=6)) == []

    @pytest.mark.parametrize("token", ["x", "WyJ0YXNrcyIsImRlZmF1bHQiLCJyZXZpZXdzIl0"])
    def test_a_token_of_another_list_is_refused(self, log: AuditLog, token: str) -> None:
        with pytest.raises(InvalidRequest):
            log.page(None, page_token=token)

    def test_a_page_has_an_end_in_bytes(self, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("adamix_server.catalog.paging.MAX_PAGE_BYTES", 500)
        log.append(entries(9))
        page = log.page(None)
        assert 1 <= len(page.rows) < 9
        assert page.next_page_token


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_one_field_is_found(
    log: AuditLog, database: Database, edit: Edit, seed: int, number: int
) -> None:
    start_anew(database)
    log.append(entries(number))
    draw = random.Random(seed)
    column, id_ = draw.choice([*COLUMNS[1:], "hash"]), draw.randint(1, number)
    value: Any = draw.choice(["", "x", 0, -1, 2**62, "\N{PARROT}", b"\xff".decode("latin1")])
    (before,) = (getattr(row, column) for row in log.page(None, page_size=100).rows if row.id == id_)
    if str(before) == str(value):
        value = "other" if isinstance(before, str) else before + 1
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE audit SET {column} = ? WHERE id = ?", (value, id_))
    found = log.verify()
    # The end is kept twice, so a changed hash of the last one shows there.
    assert fault(found) is not None
    assert found.fault is not None
    assert found.fault.id in (id_, id_ + 1)
    assert found.last_id == found.fault.id - 1


@given(data=st.data(), number=st.integers(2, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_removal_insertion_or_move_is_found(
    log: AuditLog, database: Database, edit: Edit, data: st.DataObject, number: int
) -> None:
    start_anew(database)
    log.append(entries(number))
    how = data.draw(st.sampled_from(["remove", "remove and close up", "swap", "insert", "insert and make room"]))
    id_ = data.draw(st.integers(1, number))
    up = "UPDATE audit SET id = -id - 1 WHERE id > {0}", "UPDATE audit SET id = -id WHERE id < 0"
    down = "UPDATE audit SET id = 1 - id WHERE id > {0}", "UPDATE audit SET id = -id WHERE id < 0"
    if how.startswith("remove"):
        edit(f"DELETE FROM audit WHERE id = {id_}", *(s.format(id_) for s in (down if "close" in how else ())))
    elif how == "swap":
        other = data.draw(st.integers(1, number).filter(lambda other: other != id_))
        edit(*(f"UPDATE audit SET id = {new} WHERE id = {old}" for old, new in ((id_, 0), (other, id_), (0, other))))
    else:
        after = number if how == "insert" else id_ - 1
        columns = ", ".join([*COLUMNS[1:], "hash"])
        copy = (
            f"INSERT INTO audit (id, {columns}) SELECT {after + 1}, {columns} FROM audit WHERE id = {min(id_, number)}"
        )
        if how == "insert":
            edit(copy)
        else:
            edit(*(s.format(after) for s in up))
            edit(copy.replace(f"WHERE id = {min(id_, number)}", f"WHERE id = {id_ + 1}"))
    assert fault(log.verify()) is not None


class TestWhatWasDone:
    @pytest.mark.parametrize(
        ("statements", "found"),
        [
            (["UPDATE audit SET code = 'OK ' WHERE id = 4"], (4, "changed")),
            (["UPDATE audit SET detail = CAST(x'ff' AS TEXT) WHERE id = 4"], (4, "changed")),
            (["DELETE FROM audit WHERE id = 4"], (4, "removed")),
            (["DELETE FROM audit WHERE id IN (4, 5)"], (4, "removed")),
            (["DELETE FROM audit WHERE id = 4", "UPDATE audit SET id = id - 1 WHERE id > 4"], (4, "removed")),
            (["DELETE FROM audit WHERE id > 6"], (6, "cut off")),
            (["DELETE FROM audit"], (0, "cut off")),
            (["DELETE FROM audit WHERE id = 1"], (1, "removed")),
            (["UPDATE audit SET id = 99 WHERE id = 4", "UPDATE audit SET id = 4 WHERE id = 6",
              "UPDATE audit SET id = 6 WHERE id = 99"], (4, "reordered")),
            (["UPDATE audit SET id = 99 WHERE id = 4"], (4, "reordered")),
            (["UPDATE audit SET id = -id - 1 WHERE id > 4", "UPDATE audit SET id = -id WHERE id < 0",
              STRANGER.format(5)],
             (5, "inserted")),
            ([STRANGER.format(9)],
             (9, "changed")),
            (["UPDATE audit_ends SET removed_hash = last_hash"], (1, "changed")),
        ],
    )  # fmt: skip
    def test_it_is_said(self, log: AuditLog, edit: Edit, statements: list[str], found: tuple[int, str]) -> None:
        log.append(entries(8))
        edit(*statements)
        verified = log.verify()
        assert fault(verified) == found
        assert verified.fault is not None
        assert str(found[0]) in verified.fault.told

    def test_one_that_was_put_on_at_the_end_with_its_right_hash(self, log: AuditLog, edit: Edit) -> None:
        log.append(entries(3))
        content = [4, 1, "", "", "", "M", "", "", "OK", "", "", "", 0]
        values = [*content, audit_chain.link(log.verify().last_hash, content)]
        edit(f"INSERT INTO audit VALUES ({', '.join(map(repr, values))})")
        assert fault(log.verify()) == (3, "cut off")

    def test_one_that_was_made_anew_has_not_the_hash_that_was_noted(
        self, log: AuditLog, database: Database, edit: Edit
    ) -> None:
        log.append(entries(5))
        noted = log.verify()
        log.append(entries(2))
        start_anew(database)
        log.append(entries(7, "acme"))
        assert log.verify().fault is None
        assert fault(log.verify((noted.last_id, noted.last_hash))) == (5, "not the known one")
        assert fault(log.verify((8, "0" * 64))) == (7, "cut off")

    def test_the_last_one_that_was_removed_may_have_been_noted(self, log: AuditLog) -> None:
        log.append(entries(5))
        noted = log.verify()
        log.append(entries(2, since_us=9 * DAY_US))
        log.expire(1, 9 * DAY_US)
        assert log.verify((noted.last_id, noted.last_hash)).fault is None
        assert fault(log.verify((5, "0" * 64))) == (5, "not the known one")
        assert log.verify((4, "0" * 64)).fault is None, "nothing is left to compare it with"

    def test_a_chain_without_its_ends_is_damaged(self, log: AuditLog, edit: Edit) -> None:
        log.append(entries(1))
        edit("DELETE FROM audit_ends")
        for work in (log.verify, lambda: log.append(entries(1))):
            with pytest.raises(DataLoss, match="the catalog is damaged"):
                work()


def start_anew(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM audit")
        connection.exec_driver_sql(
            "UPDATE audit_ends SET removed_id = 0, last_id = 0, removed_hash = ?, last_hash = ?", ("0" * 64, "0" * 64)
        )


class TestAge:
    def test_the_oldest_go_and_the_rest_still_verifies(self, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit, "REMOVED_AT_ONCE", 3)
        log.append([*entries(7, since_us=DAY_US), *entries(3, since_us=3 * DAY_US)])
        removed = [log.expire(1, 3 * DAY_US) for _ in range(4)]
        assert removed == [3, 3, 1, 0]
        assert log.verify().fault is None
        assert (log.verify().first_id, log.verify().entries) == (8, 3)
        log.append(entries(1))
        assert log.verify().last_id == 11

    def test_all_of_them_may_go(self, log: AuditLog) -> None:
        log.append(entries(4))
        assert log.expire(1, 9 * DAY_US) == 4
        assert log.verify().fault is None
        log.append(entries(1))
        assert ids(log.page(None)) == [5]
        assert log.verify().fault is None

    def test_what_was_removed_otherwise_is_found(self, log: AuditLog, edit: Edit) -> None:
        log.append([*entries(4), *entries(4, since_us=9 * DAY_US)])
        log.expire(1, 9 * DAY_US)
        edit("DELETE FROM audit WHERE id = 5")
        assert fault(log.verify()) == (5, "removed")

    def test_a_younger_one_keeps_those_after_it(self, log: AuditLog) -> None:
        log.append([*entries(2), *entries(1, since_us=9 * DAY_US), *entries(2)])
        assert log.expire(1, 9 * DAY_US) == 2
        assert ids(log.page(None, after_id=2)) == [3, 4, 5]

    def test_the_oldest_go_while_the_chain_is_followed(
        self, log: AuditLog, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit_chain, "_AT_ONCE", 2)
        log.append([*entries(8), *entries(4, since_us=9 * DAY_US)])
        done: list[int] = []

        def on_entry(number: int) -> None:
            done.append(number)
            if number == 2:
                # All of what was being read, and more.
                log.expire(1, 9 * DAY_US)
            if number < 7:
                log.append(entries(1, since_us=9 * DAY_US))

        found = log.verify(on_entry=on_entry)
        assert found.fault is None
        assert found.last_id > 12


def test_several_writers_make_one_chain(log: AuditLog, database: Database) -> None:
    def write(tenant: str) -> None:
        mine = AuditLog(Database(database.path, make=False))
        for i in range(20):
            mine.append(entries(1 + i % 3, tenant))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ["a1", "b2", "c3", "d4"]))
    found = log.verify()
    assert (found.fault, found.entries) == (None, 4 * (7 + 7 * 2 + 6 * 3))


def test_a_transaction_that_is_undone_leaves_no_gap(log: AuditLog, database: Database) -> None:
    log.append(entries(2))

    def fail() -> None:
        with database.write() as connection:
            audit.append(connection, entries(3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    log.append(entries(1))
    assert (log.verify().fault, log.verify().last_id) == (None, 3)


def test_a_kill_at_any_moment_leaves_a_whole_chain(log: AuditLog, database: Database) -> None:
    program = (
        "import sys, pathlib\n"
        "from adamix_server.access.entries import Entry\n"
        "from adamix_server.catalog.audit import AuditLog\n"
        "from adamix_server.catalog.database import Database\n"
        "log = AuditLog(Database(pathlib.Path(sys.argv[1]), make=False))\n"
        "while True:\n"
        "    log.append([Entry.of(10**15 + i) for i in range(50)])\n"
        "    log.expire(1, 10**15 + 86_400_000_000 + 20)\n"
        "    print(flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(database.path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(3):
            child.stdout.readline()
        child.kill()
    found = log.verify()
    assert found.fault is None
    assert found.last_id >= 150
    assert found.last_id % 50 == 0


def test_pages_are_read_by_index(log: AuditLog, database: Database) -> None:
    log.append(entries(5))
    seen: list[str] = []
    with database.read() as connection:
        for where in (
            "tenant = 'a' AND time_us >= 5 ORDER BY time_us DESC, id DESC LIMIT 5",
            "time_us >= 5 ORDER BY time_us DESC, id DESC LIMIT 5",
            "tenant = 'a' AND id > 2 ORDER BY id LIMIT 5",
            "action != '' AND action = 'register'",
        ):
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT * FROM audit WHERE {where}").all()
            seen += [row[3] for row in plan]
    assert [row.partition("USING INDEX ")[2].split()[0] for row in seen] == [
        "audit_of_tenant",
        "audit_by_time",
        "audit_of_tenant_by_id",
        "audit_of_changes",
    ]


def test_a_row_says_what_was_called_or_changed() -> None:
    row = partial(
        EntryRow, id=1, time_us=1, tenant="", principal="", peer="", resource="", digest="", code="", reason="",
        detail="", revision=0, hash="",
    )  # fmt: skip
    assert (row(method="M", action="a").what, row(method="", action="a").what) == ("M", "a")
