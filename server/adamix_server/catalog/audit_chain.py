"""The chain of the audit: each entry carries a sha256 over its content and the hash of the one before.

So no entry can be changed, removed, put in or moved without a break that `verify` finds, short of making all later
hashes anew; against that helps a hash that was noted elsewhere (`known`). Where the chain begins and ends is told by
one row: the oldest entries are removed for their age, and the hash of the last of them stays. Knows numbers and texts;
not what they mean.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import OperationalError

from adamix_client.audit_chain import COLUMNS, link
from adamix_server.catalog import schema
from adamix_server.catalog.database import corrupt

# In one reading, so that a server can go on writing and its log does not grow.
_AT_ONCE = 10_000
# How far from its place an entry is looked for.
_LOOK_AROUND = 1_000

# A transaction that reads.
Reading = Callable[[], AbstractContextManager[Connection]]
# The columns of an entry, and its hash.
_Row = Sequence[Any]
How = Literal["changed", "removed", "inserted", "reordered", "cut off", "not the known one"]

_rows = select(*(schema.audit.c[name] for name in (*COLUMNS, "hash"))).order_by(schema.audit.c.id)


class Ends(msgspec.Struct, frozen=True):
    """Where the chain begins, after the last entry that was removed, and where it ends."""

    removed_id: int
    removed_hash: str
    last_id: int
    last_hash: str


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Where the chain breaks: at which entry, and what seems to have been done there."""

    id: int
    how: How

    @property
    def told(self) -> str:
        """For people."""
        return _TOLD[self.how].format(id=self.id)


_TOLD: dict[How, str] = {
    "changed": "entry {id} was changed",
    "removed": "entries from {id} on were removed",
    "inserted": "entry {id} was put in later",
    "reordered": "entry {id} is in another one's place",
    "cut off": "the entries after {id} were cut off, or put on later",
    "not the known one": "entry {id} has another hash than the one that was noted",
}


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a chain.

    Attributes:
        entries: how many were looked at.
        first_id: of the oldest entry that is there.
        last_id, last_hash: of the newest one; who notes them elsewhere can tell later whether all was made anew.
        fault: where it breaks first; None if it is whole.
    """

    entries: int
    first_id: int
    last_id: int
    last_hash: str
    fault: Fault | None = None


def read_ends(connection: Connection) -> Ends:
    """Raises DataLoss (`CATALOG_CORRUPT`): somebody has removed them."""
    ends = schema.audit_ends.c
    columns = ends.removed_id, ends.removed_hash, ends.last_id, ends.last_hash
    found = connection.execute(select(*columns).where(ends.id == 1)).one_or_none()
    if found is None:
        raise corrupt()
    return Ends(*found)


def write_ends(connection: Connection, **ends: int | str) -> None:
    """Change some of them, inside a write transaction."""
    connection.execute(update(schema.audit_ends).where(schema.audit_ends.c.id == 1).values(**ends))


def verify(
    read: Reading, known: tuple[int, str] | None = None, on_entry: Callable[[int], None] = lambda _done: None
) -> Verified:
    """Follow the chain from its beginning to its end, beside a server that writes to it and removes what is too old.

    Args:
        read: opens transactions; each is short.
        known: id and hash of an entry as somebody noted them earlier. Of one that was removed for its age nothing can
            be said, unless it was the last one.
        on_entry: called with how many entries were looked at, now and then.
    """
    entries, last_id, last_hash, first_id = 0, -1, "", 0
    while True:
        with read() as connection:
            ends = read_ends(connection)
            if last_id < ends.removed_id:
                # At the beginning, or where the oldest have been removed up to here and beyond.
                last_id, last_hash = ends.removed_id, ends.removed_hash
                if known is not None and known[0] == last_id and known[1] != last_hash:
                    fault: Fault | None = Fault(id=last_id, how="not the known one")
                    return Verified(entries=0, first_id=0, last_id=last_id, last_hash=last_hash, fault=fault)
            rows = _read(connection, last_id)
        first_id = first_id or (int(rows[0][0]) if rows else 0)
        for place, row in enumerate(rows):
            if row[0] != last_id + 1 or link(last_hash, row[:-1]) != row[-1]:
                around = rows[place : place + _LOOK_AROUND]
                return Verified(
                    entries=entries,
                    first_id=first_id,
                    last_id=last_id,
                    last_hash=last_hash,
                    fault=_fault(around, last_id + 1, last_hash),
                )
            last_id, last_hash, entries = last_id + 1, row[-1], entries + 1
            if known is not None and last_id == known[0] and last_hash != known[1]:
                fault = Fault(id=last_id, how="not the known one")
                return Verified(entries=entries, first_id=first_id, last_id=last_id, last_hash=last_hash, fault=fault)
        on_entry(entries)
        if len(rows) < _AT_ONCE:
            fault = None
            if (last_id, last_hash) != (ends.last_id, ends.last_hash) or (known is not None and known[0] > last_id):
                fault = Fault(id=min(last_id, ends.last_id), how="cut off")
            return Verified(entries=entries, first_id=first_id, last_id=last_id, last_hash=last_hash, fault=fault)


def _read(connection: Connection, after: int) -> list[_Row]:
    query = _rows.where(schema.audit.c.id > after).limit(_AT_ONCE)
    try:
        return [tuple(row) for row in connection.execute(query)]
    except OperationalError:
        # Somebody has put bytes there that are no text.
        driver: Any = connection.connection.driver_connection
        strict, driver.text_factory = driver.text_factory, lambda data: data.decode("utf-8", "replace")
        try:
            return [tuple(row) for row in connection.execute(query)]
        finally:
            driver.text_factory = strict


def _fault(rows: Sequence[_Row], expected: int, before: str) -> Fault:
    """What was done where the first of some rows is not the entry that follows."""
    first = rows[0]

    def fits(row: _Row, after: str, id_: int) -> bool:
        return bool(link(after, (id_, *row[1:-1])) == row[-1])

    if first[0] != expected:
        how: How = "reordered" if any(fits(row, before, expected) for row in rows) else "removed"
        return Fault(id=expected, how=how)
    for place, row in enumerate(rows[1:], 1):
        if fits(row, before, expected):
            # All after one that was put in have moved by one.
            is_moved = place == 1 and (len(rows) < 3 or fits(rows[2], row[-1], expected + 1))
            return Fault(id=expected, how="inserted" if is_moved else "reordered")
    # Removed, and the others numbered anew.
    if len(rows) > 1 and any(fits(rows[1], first[-1], expected + 1 + gap) for gap in range(1, _LOOK_AROUND)):
        return Fault(id=expected, how="removed")
    return Fault(id=expected, how="changed")
