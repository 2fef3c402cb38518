"""From tables to rows: the queries behind every answer of the catalog.

Reads four tables in four queries for each few thousand tasks, and joins them here: one query with joins would send a
task's columns once per version. What is known already is not read again: a task with the etag of a known row is that
row, and a version never changes its manifest, which can be larger than all else together.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from operator import attrgetter

import msgspec
from sqlalchemy import ColumnElement, Connection, select

from adamix_server.catalog import schema
from adamix_server.catalog.heads import Served, read_served
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.pointer import Split, read_split
from adamix_server.catalog.rows import Name, TaskRow, UnavailableReason, VersionRecord, VersionRow

log = logging.getLogger(__name__)

_tasks, _versions, _traffic, _pins = schema.tasks.c, schema.versions.c, schema.traffic.c, schema.pins.c

# Below SQLite's limit on bound values in one statement (32,766), and so few that what is read and not kept is little.
_TASKS_PER_QUERY = 5_000

# What `VersionRecord` has besides its manifest, in bytes of an answer.
_RECORD_BYTES = 512

# The weights of a split of one version, as most are.
_ALL = (1,)

# Of a column that holds ids of tasks: whether it is one of those that are read.
_Chosen = Callable[[ColumnElement[int]], ColumnElement[bool]]
# Whether a list is to tell of a task of this id.
IsListed = Callable[[str], bool]


def read_all(connection: Connection, backbone_fingerprint: str) -> Iterator[TaskRow]:
    """Every task, seen from one backbone."""
    after: int | None = 0
    while after is not None:
        upto = connection.scalar(
            select(_tasks.id).where(_tasks.id > after).order_by(_tasks.id).offset(_TASKS_PER_QUERY - 1).limit(1)
        )
        yield from _read(connection, backbone_fingerprint, _between(after, upto), {}).values()
        after = upto


def read_tasks(
    connection: Connection, backbone_fingerprint: str, task_ids: Iterable[int], known: Mapping[Name, TaskRow]
) -> dict[int, TaskRow]:
    """Some tasks by row id, seen from one backbone; `known` are rows that were read before, for the same backbone."""
    ids, found = sorted(task_ids), dict[int, TaskRow]()
    for start in range(0, len(ids), _TASKS_PER_QUERY):
        some = ids[start : start + _TASKS_PER_QUERY]
        columns = _tasks.id, _tasks.tenant, _tasks.task, _tasks.etag
        for task_id, tenant, task, etag in connection.execute(select(*columns).where(_tasks.id.in_(some))):
            if (row := known.get((tenant, task))) is not None and row.etag == etag:
                found[task_id] = row
        if rest := [task_id for task_id in some if task_id not in found]:
            found |= _read(connection, backbone_fingerprint, _among(rest), known)
    return found


def read_ids(connection: Connection, tenant: str, after: str, count: int, is_listed: IsListed | None) -> list[int]:
    """Row ids of a tenant's tasks by name: the first `count` that are listed after the one called `after`."""
    query = select(_tasks.id, _tasks.task).where(_tasks.tenant == tenant, _tasks.task > after).order_by(_tasks.task)
    # No more is read than it takes.
    with connection.execute(query).yield_per(count) as rows:
        listed = (task_id for task_id, task in rows if is_listed is None or is_listed(task))
        return list(islice(listed, count))


def read_names(connection: Connection, digest: str) -> tuple[Name, ...]:
    """The tasks of all tenants that have a READY version with these bytes."""
    query = select(_tasks.tenant, _tasks.task).join(schema.versions, _versions.task_id == _tasks.id)
    rows = connection.execute(query.where(_versions.digest == digest, schema.is_ready))
    return tuple((tenant, task) for tenant, task in rows)


def read_page(
    connection: Connection, task_id: int, row: TaskRow, before: int | None, size: int, max_bytes: int
) -> tuple[list[VersionRecord], int | None]:
    """Some READY versions of a task with their manifests, the newest first.

    Args:
        row: the task as it is in this transaction.
        before: only versions with smaller ids; None for all.
        size: at most so many, and no more than fit in about `max_bytes` of an answer; but one, however large it is.

    Returns:
        the versions, and the id of the last one if there are more.
    """
    of_task = (_versions.task_id == task_id) & schema.is_ready
    if before is not None:
        of_task &= _versions.id < before
    ids = list(connection.scalars(select(_versions.id).where(of_task).order_by(_versions.id.desc()).limit(size + 1)))
    wanted = select(_versions.id, _versions.digest, _versions.manifest_json).where(_versions.id.in_(ids[:size]))
    versions = row.versions
    found: list[VersionRecord] = []
    last, left = None, max_bytes
    # A few at a time: what does not fit is not read.
    with connection.execute(wanted.order_by(_versions.id.desc())).yield_per(10) as records:
        for id_, digest, manifest_json in records:
            left -= len(manifest_json) + _RECORD_BYTES
            if left < 0 and found:
                return found, last
            last = id_
            # One that cannot be read is in no row, and in no list.
            if (version := versions.get(digest)) is not None:
                found.append(VersionRecord(**msgspec.structs.asdict(version), manifest_json=manifest_json))
    return found, last if len(ids) > size else None


def _between(after: int, upto: int | None) -> _Chosen:
    def chosen(ids: ColumnElement[int]) -> ColumnElement[bool]:
        return ids > after if upto is None else (ids > after) & (ids <= upto)

    return chosen


def _among(some: list[int]) -> _Chosen:
    def chosen(ids: ColumnElement[int]) -> ColumnElement[bool]:
        return ids.in_(some)

    return chosen


def _read(
    connection: Connection, backbone_fingerprint: str, chosen: _Chosen, known: Mapping[Name, TaskRow]
) -> dict[int, TaskRow]:
    splits: dict[int, Split] = {
        task_id: read_split(current)
        for task_id, current in connection.execute(
            select(_traffic.task_id, _traffic.current).where(
                chosen(_traffic.task_id), _traffic.backbone_fingerprint == backbone_fingerprint
            )
        )
    }
    pins = {
        (task_id, digest)
        for task_id, digest in connection.execute(select(_pins.task_id, _pins.digest).where(chosen(_pins.task_id)))
    }
    names: dict[int, tuple[str, str, str, int, int]] = {
        task_id: (sys.intern(tenant), task, etag, create_time_us, update_time_us)
        for task_id, tenant, task, etag, create_time_us, update_time_us in connection.execute(
            select(
                _tasks.id, _tasks.tenant, _tasks.task, _tasks.etag, _tasks.create_time_us, _tasks.update_time_us
            ).where(chosen(_tasks.id))
        )
    }
    of_task = {task_id: row.versions for task_id, columns in names.items() if (row := known.get(columns[:2]))}
    wanted = (
        _versions.id,
        _versions.task_id,
        _versions.digest,
        _versions.create_time_us,
        _versions.num_bytes,
        _versions.backbone_fingerprint,
    )
    rows = connection.execute(select(*wanted).where(chosen(_versions.task_id), schema.is_ready)).all()
    unread = [id_ for id_, task_id, digest, *_ in rows if digest not in of_task.get(task_id, ())]
    # Mostly all of them, or next to none.
    which = _among(unread)(_versions.id) if of_task else chosen(_versions.task_id) & schema.is_ready
    served = _read_served(connection, which) if unread else {}
    versions: defaultdict[int, list[VersionRow]] = defaultdict(list)
    for id_, task_id, digest, create_time_us, num_bytes, fingerprint in rows:
        if id_ in served:
            head, max_length, writing = served[id_]
        elif (before := of_task.get(task_id, {}).get(digest)) is not None:
            head, max_length, writing = before.head, before.max_length, before.writing
        else:
            continue
        tenant, task = names[task_id][:2]
        versions[task_id].append(
            VersionRow(
                tenant=tenant,
                task=task,
                digest=sys.intern(digest),
                state=State.READY,
                create_time_us=create_time_us,
                num_bytes=num_bytes,
                backbone_fingerprint=sys.intern(fingerprint),
                head=head,
                max_length=max_length,
                live=any(digest == name for name, _ in splits.get(task_id, ())),
                pinned=(task_id, digest) in pins,
                writing=writing,
            )
        )
    return {
        task_id: _to_task(*columns, versions[task_id], splits.get(task_id, ()), backbone_fingerprint)
        for task_id, columns in names.items()
    }


def _read_served(connection: Connection, which: ColumnElement[bool]) -> dict[int, Served]:
    """What `read_served` gives of versions by row id, without those whose manifests cannot be read."""
    served: dict[int, Served] = {}
    # A manifest may have a megabyte: few at a time.
    wanted = select(_versions.id, _versions.digest, _versions.manifest_json).where(which)
    for id_, digest, manifest_json in connection.execute(wanted).yield_per(100):
        try:
            served[id_] = read_served(manifest_json)
        except msgspec.MsgspecError as error:
            # A newer adamix may have stored it. The other versions and tasks are not to suffer for it.
            log.error("a version is left out: its manifest cannot be read: %s", error, extra={"digest": digest})  # noqa: TRY400 - the trace says nothing
    return served


def _to_task(
    tenant: str,
    task: str,
    etag: str,
    create_time_us: int,
    update_time_us: int,
    versions: list[VersionRow],
    split: Split,
    backbone_fingerprint: str,
) -> TaskRow:
    ready = tuple(sorted(versions, key=attrgetter("digest")))
    live = tuple(row for row in ready if row.live)
    of_digest = dict(split)
    weights = tuple(of_digest[row.digest] for row in live)
    return TaskRow(
        tenant=tenant,
        task=task,
        etag=etag,
        create_time_us=create_time_us,
        update_time_us=update_time_us,
        unavailable_reason=_unavailable_reason(bool(live), versions, backbone_fingerprint),
        ready=ready,
        # One object where they are equal: most tasks have one version, which is live with the weight 1.
        live=ready if len(live) == len(ready) else live,
        weights=_ALL if weights == _ALL else weights,
    )


def read_record(connection: Connection, task_id: int, row: VersionRow) -> VersionRecord:
    """A READY version of a task with its manifest."""
    mine = (_versions.task_id == task_id) & schema.is_ready & (_versions.digest == row.digest)
    manifest_json = connection.scalars(select(_versions.manifest_json).where(mine)).one()
    return VersionRecord(**msgspec.structs.asdict(row), manifest_json=manifest_json)


def _unavailable_reason(
    is_live: bool, versions: Collection[VersionRow], backbone_fingerprint: str
) -> UnavailableReason:
    if is_live:
        return ""
    if versions and all(version.backbone_fingerprint != backbone_fingerprint for version in versions):
        return "BACKBONE_CHANGED"
    return "NO_LIVE_VERSION"
