"""The audit: who did what, when, and how it ended. Only added to, and removed from the old end when time has passed.

A change of the catalog writes its entry in its own transaction; all other entries are written by one writer, many in a
transaction. The order of the transactions is the order of the entries, whoever wrote them. What makes it tamper-evident
is `audit_chain.py`. Nothing that is served depends on it.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, insert, select

from adamix_client.audit_chain import COLUMNS, link
from adamix_server.access.entries import Entry
from adamix_server.catalog import schema
from adamix_server.catalog.audit_chain import Reading, Verified, read_ends, verify, write_ends
from adamix_server.catalog.database import Database
from adamix_server.catalog.paging import check_page_size, count_that_fit, make_token, read_token
from adamix_server.catalog.rows import Page
from adamix_server.names import check_name

# What commands on a stopped server write down of themselves.
RESTORED, REBUILT, ACCEPTED = "adamix store restore", "adamix store rebuild", "adamix serve --accept-catalog"
# Of the oldest entries, so many are removed in one transaction: others wait for it.
REMOVED_AT_ONCE = 1_000

_audit = schema.audit.c
_DAY_US = 86_400_000_000


class EntryRow(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as it is stored. `action` and `revision` are those of a change of the catalog, else empty and 0."""

    id: int
    time_us: int
    tenant: str
    principal: str
    peer: str
    method: str
    resource: str
    digest: str
    code: str
    reason: str
    detail: str
    action: str
    revision: int
    hash: str

    @property
    def what(self) -> str:
        """What was called; or what was changed, where nobody called."""
        return self.method or self.action


def resource_of(tenant: str, task: str = "") -> str:
    """A tenant, or a task of it, as entries name it, and as it is called on the wire."""
    return f"tenants/{tenant}/tasks/{task}" if task else f"tenants/{tenant}"


def append(connection: Connection, entries: Iterable[Entry], action: str = "", revision: int = 0) -> int:
    """Add entries to the end of the audit, inside the transaction of whoever writes; gives the id of the last one."""
    ends = read_ends(connection)
    last_id, last_hash, rows = ends.last_id, ends.last_hash, list[dict[str, object]]()
    for entry in entries:
        last_id += 1
        content = (last_id, *msgspec.structs.astuple(entry), action, revision)
        last_hash = link(last_hash, content)
        rows.append(dict(zip(COLUMNS, content, strict=True), hash=last_hash))
    if rows:
        connection.execute(insert(schema.audit), rows)
        write_ends(connection, last_id=last_id, last_hash=last_hash)
    return last_id


def note(connection: Connection, method: str, detail: str) -> None:
    """Write down what the server, or a command on a stopped one, has done with the whole catalog."""
    append(connection, [Entry.of(time.time_ns() // 1_000, method=method, detail=detail)])


def read_page(
    read: Reading,
    tenant: str | None,
    *,
    since_us: int = 0,
    after_id: int = 0,
    page_size: int = 0,
    page_token: str = "",
) -> Page[EntryRow]:
    """Some entries, the newest first; or, after the one with `after_id`, the oldest first.

    Args:
        tenant: whose; None for all.
        since_us: only entries from then on, in microseconds since 1970 UTC.

    Raises:
        InvalidRequest: a malformed tenant, page size or token.
    """
    if tenant is not None:
        check_name(tenant, "tenant")
    listing = ("audit", tenant or "-", "after" if after_id else "newest")
    size = check_page_size(page_size)
    wanted: list[ColumnElement[bool]] = [] if tenant is None else [_audit.tenant == tenant]
    if since_us > 0:
        wanted.append(_audit.time_us >= since_us)
    if after_id:
        key = read_token(page_token, listing, int)
        wanted.append(_audit.id > (after_id if key is None else key[0]))
        order: list[ColumnElement[Any]] = [_audit.id]
    else:
        # By time, of which there is an index; what is written down later has its place all the same.
        key = read_token(page_token, listing, int, int)
        if key is not None:
            before_us, before_id = key
            earlier = _audit.time_us < before_us
            wanted += [_audit.time_us <= before_us, earlier | (_audit.id < before_id)]
        order = [_audit.time_us.desc(), _audit.id.desc()]
    query = select(*(_audit[name] for name in EntryRow.__struct_fields__)).where(*wanted).order_by(*order)
    with read() as connection:
        found = [EntryRow(**row) for row in connection.execute(query.limit(size + 1)).mappings()]
    rows = found[:size]
    rows = rows[: count_that_fit(map(_bytes_of, rows))]
    if len(rows) == len(found):
        return Page(tuple(rows), "")
    last = rows[-1]
    return Page(tuple(rows), make_token(listing, [last.id] if after_id else [last.time_us, last.id]))


class AuditLog:
    """The audit of one catalog. The methods block on the disk."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries down, all or none. Raises StoreFull, Unavailable."""
        with self._database.write() as connection:
            append(connection, entries)

    def page(
        self,
        tenant: str | None,
        *,
        since_us: int = 0,
        after_id: int = 0,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[EntryRow]:
        """As `read_page`."""
        return read_page(
            self._database.read,
            tenant,
            since_us=since_us,
            after_id=after_id,
            page_size=page_size,
            page_token=page_token,
        )

    def verify(
        self, known: tuple[int, str] | None = None, on_entry: Callable[[int], None] = lambda _done: None
    ) -> Verified:
        """As `audit_chain.verify`."""
        return verify(self._database.read, known, on_entry)

    def expire(self, days: int, now_us: int) -> int:
        """Remove some of the entries that are older than that, from the oldest on; gives how many.

        The hash of the last one stays, so that those after it still verify. An entry that is younger keeps those after
        it, whatever the clock said when they were written.
        """
        oldest_us = now_us - days * _DAY_US
        with self._database.write() as connection:
            removed_id, removed_hash, number = 0, "", 0
            is_old = _audit.time_us < oldest_us
            rows = select(_audit.id, is_old, _audit.hash).order_by(_audit.id).limit(REMOVED_AT_ONCE)
            for id_, is_removed, hash_ in connection.execute(rows).all():
                if not is_removed:
                    break
                removed_id, removed_hash, number = id_, hash_, number + 1
            if number:
                connection.execute(delete(schema.audit).where(_audit.id <= removed_id))
                write_ends(connection, removed_id=removed_id, removed_hash=removed_hash)
        return number


def _bytes_of(row: EntryRow) -> int:
    """About what an entry takes up in an answer."""
    texts = row.tenant, row.principal, row.peer, row.method, row.resource, row.digest, row.code, row.reason, row.detail
    return 160 + sum(len(text.encode()) for text in texts)
