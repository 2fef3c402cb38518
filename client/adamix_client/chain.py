"""Whether the audit that a server tells hangs together: each hash is made anew from what was told.

The server is not believed for it. What was told before, and noted, it cannot take back; where the chain begins, and
whether its end was cut off, only its store tells. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from adamix_client.access_values import AuditEntry
from adamix_client.audit_chain import link

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Chain:
    """What was found of a chain.

    Attributes:
        entries: how many are as they were written.
        first_id: of the oldest one.
        last_id, last_hash: of the newest one that hangs together with it.
        fault: what is wrong with the next one, for people; empty if nothing is.
    """

    entries: int
    first_id: int
    last_id: int
    last_hash: str
    fault: str = ""


def follow(entries: Iterable[AuditEntry], known: tuple[int, str] | None = None) -> Chain:
    """Follow a chain as far as it is whole.

    Args:
        entries: all that there are, the oldest first. What the first one follows on is not known here.
        known: id and hash of an entry as somebody noted them earlier.
    """
    count, first_id, last_id, last_hash = 0, 0, 0, ""
    for entry in entries:
        fault = ""
        if count and entry.id != last_id + 1:
            fault = f"entries from {last_id + 1} on were removed"
        elif count and link(last_hash, _content(entry)) != entry.hash:
            fault = f"entry {entry.id} is not what was written"
        elif known is not None and entry.id == known[0] and entry.hash != known[1]:
            fault = f"entry {entry.id} has another hash than the one that was noted"
        if fault:
            return Chain(count, first_id, last_id, last_hash, fault)
        count, first_id = count + 1, first_id or entry.id
        last_id, last_hash = entry.id, entry.hash
    cut_off = known is not None and known[0] > last_id
    return Chain(count, first_id, last_id, last_hash, f"the entries after {last_id} were cut off" if cut_off else "")


def _content(entry: AuditEntry) -> tuple[int | str, ...]:
    """In the order of `COLUMNS`. What nobody called is told by what was changed, in place of a method."""
    return (
        entry.id,
        (entry.time - _EPOCH) // timedelta(microseconds=1),
        entry.tenant,
        entry.principal,
        entry.peer,
        "" if entry.method == entry.action else entry.method,
        entry.resource,
        entry.digest,
        entry.code,
        entry.reason,
        entry.detail,
        entry.action,
        entry.revision,
    )
