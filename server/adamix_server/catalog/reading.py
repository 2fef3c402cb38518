"""From tables to rows: the queries behind every answer of the catalog.

Reads four tables in four queries whatever the number of tasks, and joins them here: one query with joins would
send a task's columns once per version.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from types import MappingProxyType

from sqlalchemy import ColumnElement, Connection, select, true

from adamix_server.catalog import schema
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.pointer import Split, read_split
from adamix_server.catalog.rows import TaskRow, Traffic, UnavailableReason, VersionRow

_tasks, _versions, _traffic, _pins = schema.tasks.c, schema.versions.c, schema.traffic.c, schema.pins.c

# Below SQLite's limit on bound values in one statement (32,766).
_IDS_PER_QUERY = 10_000


def read_tasks(
    connection: Connection, backbone_fingerprint: str, task_ids: Iterable[int] | None = None
) -> dict[int, TaskRow]:
    """Tasks by row id, seen from one backbone: all of them, or those of `task_ids`."""
    if task_ids is None:
        return _read(connection, backbone_fingerprint, true(), true(), true(), true())
    ids, found = sorted(task_ids), dict[int, TaskRow]()
    for start in range(0, len(ids), _IDS_PER_QUERY):
        some = ids[start : start + _IDS_PER_QUERY]
        found |= _read(
            connection,
            backbone_fingerprint,
            _tasks.id.in_(some),
            _versions.task_id.in_(some),
            _traffic.task_id.in_(some),
            _pins.task_id.in_(some),
        )
    return found


def _read(
    connection: Connection,
    backbone_fingerprint: str,
    of_tasks: ColumnElement[bool],
    of_versions: ColumnElement[bool],
    of_traffic: ColumnElement[bool],
    of_pins: ColumnElement[bool],
) -> dict[int, TaskRow]:
    splits: dict[int, Split] = {
        task_id: read_split(current)
        for task_id, current in connection.execute(
            select(_traffic.task_id, _traffic.current).where(
                of_traffic, _traffic.backbone_fingerprint == backbone_fingerprint
            )
        )
    }
    pins = {
        (task_id, digest) for task_id, digest in connection.execute(select(_pins.task_id, _pins.digest).where(of_pins))
    }
    names: dict[int, tuple[str, str, str, int, int]] = {
        task_id: (tenant, task, etag, create_time_us, update_time_us)
        for task_id, tenant, task, etag, create_time_us, update_time_us in connection.execute(
            select(
                _tasks.id, _tasks.tenant, _tasks.task, _tasks.etag, _tasks.create_time_us, _tasks.update_time_us
            ).where(of_tasks)
        )
    }
    versions: defaultdict[int, dict[str, VersionRow]] = defaultdict(dict)
    for task_id, digest, create_time_us, num_bytes, fingerprint, manifest_json in connection.execute(
        select(
            _versions.task_id,
            _versions.digest,
            _versions.create_time_us,
            _versions.num_bytes,
            _versions.backbone_fingerprint,
            _versions.manifest_json,
        ).where(of_versions, schema.is_ready)
    ):
        tenant, task = names[task_id][:2]
        versions[task_id][digest] = VersionRow(
            tenant=tenant,
            task=task,
            digest=digest,
            state=State.READY,
            create_time_us=create_time_us,
            num_bytes=num_bytes,
            backbone_fingerprint=fingerprint,
            manifest_json=manifest_json,
            live=any(digest == name for name, _ in splits.get(task_id, ())),
            pinned=(task_id, digest) in pins,
        )
    return {
        task_id: TaskRow(
            tenant=tenant,
            task=task,
            etag=etag,
            create_time_us=create_time_us,
            update_time_us=update_time_us,
            traffic=tuple(Traffic(digest, weight) for digest, weight in splits.get(task_id, ())),
            unavailable_reason=_unavailable_reason(task_id in splits, versions[task_id].values(), backbone_fingerprint),
            versions=MappingProxyType(versions[task_id]),
        )
        for task_id, (tenant, task, etag, create_time_us, update_time_us) in names.items()
    }


def _unavailable_reason(
    is_live: bool, versions: Collection[VersionRow], backbone_fingerprint: str
) -> UnavailableReason:
    if is_live:
        return ""
    if versions and all(version.backbone_fingerprint != backbone_fingerprint for version in versions):
        return "BACKBONE_CHANGED"
    return "NO_LIVE_VERSION"
