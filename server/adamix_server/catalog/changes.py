"""The steps mutations are made of. Each runs inside a write transaction of its caller.

A mutation finds its task (and checks the etag), changes rows or the pointer, and ends with `record`, which gives the
change its revision, the task its new etag, the change log its rows and the audit its own; one of tenants, keys or
grants ends with `record_access`. The change log is for readers that want the difference; the audit is for people.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Literal, get_args

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from adamix.errors import Aborted
from adamix_server.access.entries import Entry
from adamix_server.access.principal import SERVER, Actor
from adamix_server.catalog import audit, schema
from adamix_server.catalog.lifecycle import State
from adamix_server.catalog.pointer import Pointer
from adamix_server.catalog.rows import Action
from adamix_server.limits.control import MAX_LOGGED_REVISIONS
from adamix_server.names import check_name, task_not_found, tenant_not_found

# What the detail of a change of a key begins with, before its id.
KEYS = "keys/"

# What a row of the change log names: a task, a digest that a task has got a version with, a tenant, a key by its id, or
# a grant by `grant_name`.
Kind = Literal["task", "version", "tenant", "key", "grant"]
# (kind, tenant, name)
Change = tuple[Kind, str, str]

_tenants, _tasks, _versions, _traffic, _pins, _log = (
    schema.tenants.c,
    schema.tasks.c,
    schema.versions.c,
    schema.traffic.c,
    schema.pins.c,
    schema.changes.c,
)


def read_revision(connection: Connection) -> int:
    return int(connection.scalars(select(schema.state.c.revision)).one())


def find_task(connection: Connection, tenant: str, task: str, etag: str = "") -> int:
    """The row id of a task, as it is under `etag` (empty: as it is).

    Raises:
        InvalidRequest: an id is malformed.
        NotFound: no such task.
        Aborted: the task has changed since it had that etag.
    """
    check_name(tenant, "tenant")
    check_name(task, "task")
    query = select(_tasks.id, _tasks.etag).where(_tasks.tenant == tenant, _tasks.task == task)
    found = connection.execute(query).one_or_none()
    if found is None:
        raise task_not_found()
    if etag and etag != found.etag:
        raise Aborted("the task has changed since you read it; read it again and decide anew")
    return int(found.id)


def check_tenant(connection: Connection, tenant: str) -> None:
    """Raises InvalidRequest on a malformed id, and NotFound (`TENANT_NOT_FOUND`)."""
    check_name(tenant, "tenant")
    if connection.execute(select(_tenants.tenant).where(_tenants.tenant == tenant)).first() is None:
        raise tenant_not_found()


def make_tenant(connection: Connection, tenant: str) -> None:
    """Make a tenant with the shares and quotas of anybody, if it does not exist."""
    now = now_us()
    row = sqlite_insert(schema.tenants).values(tenant=tenant, create_time_us=now, update_time_us=now)
    connection.execute(row.on_conflict_do_nothing())


def find_or_make_task(connection: Connection, tenant: str, task: str) -> int:
    """The row id of a task, of a tenant that exists; it is made if it does not exist."""
    now = now_us()
    connection.execute(
        sqlite_insert(schema.tasks)
        .values(tenant=tenant, task=task, etag="", create_time_us=now, update_time_us=now)
        .on_conflict_do_nothing()
    )
    return find_task(connection, tenant, task)


def ready_versions(connection: Connection, task_id: int) -> dict[str, str]:
    """Digest -> backbone fingerprint of the task's READY versions."""
    query = select(_versions.digest, _versions.backbone_fingerprint)
    rows = connection.execute(query.where(_versions.task_id == task_id, schema.is_ready))
    return dict(rows.all())


def set_pin(connection: Connection, task_id: int, digest: str, pinned: bool) -> bool:
    """Pin or unpin a version of a task; whether it was not so before."""
    if not pinned:
        mine = (_pins.task_id == task_id) & (_pins.digest == digest)
        return bool(connection.execute(delete(schema.pins).where(mine)).rowcount)
    row = sqlite_insert(schema.pins).values(task_id=task_id, digest=digest, create_time_us=now_us())
    return bool(connection.execute(row.on_conflict_do_nothing()).rowcount)


def retire(connection: Connection, task_id: int, digest: str | None = None) -> None:
    """READY -> RETIRED for one version of a task, or for all of them; their pins go."""
    chosen, pins = (_versions.task_id == task_id) & schema.is_ready, _pins.task_id == task_id
    if digest is not None:
        chosen &= _versions.digest == digest
        pins &= _pins.digest == digest
    connection.execute(delete(schema.pins).where(pins))
    connection.execute(update(schema.versions).where(chosen).values(state=State.RETIRED))


def read_pointers(connection: Connection, task_id: int) -> dict[str, Pointer]:
    """The task's pointers by backbone fingerprint."""
    query = select(_traffic.backbone_fingerprint, _traffic.current, _traffic.earlier)
    rows = connection.execute(query.where(_traffic.task_id == task_id))
    return {backbone: Pointer.from_json(current, earlier) for backbone, current, earlier in rows}


def move_pointer(connection: Connection, task_id: int, backbone: str, change: Callable[[Pointer], Pointer]) -> bool:
    """Replace the task's pointer on one backbone by what `change` makes of it; whether that differs."""
    before = read_pointers(connection, task_id).get(backbone, Pointer())
    after = change(before)
    if after == before:
        return False
    connection.execute(
        delete(schema.traffic).where(_traffic.task_id == task_id, _traffic.backbone_fingerprint == backbone)
    )
    if after.current:
        current, earlier = after.to_json()
        connection.execute(
            insert(schema.traffic).values(
                task_id=task_id, backbone_fingerprint=backbone, current=current, earlier=earlier
            )
        )
    return True


def record(
    connection: Connection,
    tenant: str,
    task: str,
    action: Action,
    digest: str | None = None,
    detail: str = "",
    *,
    by: Actor = SERVER,
    also: Iterable[Change] = (),
) -> None:
    """Give a change of a task its revision, the task a new etag, and write it down.

    Args:
        also: what else changed with it.
    """
    changed: list[Change] = [("task", tenant, task), *also]
    if action == "register" and digest is not None:
        changed.append(("version", tenant, digest))
    revision = _log_changes(connection, changed)
    connection.execute(
        update(schema.tasks)
        .where(_tasks.tenant == tenant, _tasks.task == task)
        .values(etag=schema.new_etag(), update_time_us=now_us())
    )
    _write_audit(connection, revision, tenant, task, action, digest, detail, by)


def record_access(
    connection: Connection,
    tenant: str,
    action: Action,
    changed: Iterable[Change],
    *,
    task: str = "",
    detail: str = "",
    by: Actor = SERVER,
) -> None:
    """Give a change of a tenant, of its keys or of its grants a revision, and write it down."""
    _write_audit(connection, _log_changes(connection, changed), tenant, task, action, None, detail, by)


def grant_name(task: str, tenant: str) -> str:
    """A grant, as the change log names it among those of the task's owner."""
    return f"{task}/{tenant}"


def changed_since(connection: Connection, revision: int) -> Mapping[Kind, Set[tuple[str, str]]] | None:
    """The (tenant, name) of all that changed after a revision, by kind; None if the log does not go back so far.

    It goes back if it has every revision since: whatever was dropped, by whomever, none is missed.
    """
    newest = read_revision(connection)
    changed: dict[Kind, set[tuple[str, str]]] = {kind: set() for kind in get_args(Kind)}
    if revision == newest:
        return changed
    rows = connection.execute(
        select(_log.revision, _log.kind, _log.tenant, _log.name).where(_log.revision > revision)
    ).all()
    if len({row.revision for row in rows}) != newest - revision:
        return None
    for _, kind, tenant, name in rows:
        changed[kind].add((tenant, name))
    return changed


def forget_changes(connection: Connection) -> None:
    """Empty the change log: whoever reads next reads everything."""
    connection.execute(delete(schema.changes))


def _log_changes(connection: Connection, changed: Iterable[Change]) -> int:
    """Take the next revision and note what changed with it; forget the oldest. Gives the revision."""
    connection.execute(update(schema.state).values(revision=schema.state.c.revision + 1))
    revision = read_revision(connection)
    rows = [
        {"revision": revision, "kind": kind, "tenant": tenant, "name": name}
        for kind, tenant, name in dict.fromkeys(changed)
    ]
    connection.execute(insert(schema.changes), rows)
    connection.execute(delete(schema.changes).where(_log.revision <= revision - MAX_LOGGED_REVISIONS))
    return revision


def _write_audit(
    connection: Connection,
    revision: int,
    tenant: str,
    task: str,
    action: Action,
    digest: str | None,
    detail: str,
    by: Actor,
) -> None:
    resource = audit.resource_of(tenant, task)
    if detail.startswith(KEYS):
        resource, detail = f"{resource}/{detail}", ""
    entry = Entry.of(
        now_us(),
        tenant=tenant,
        principal=by.principal,
        peer=by.peer,
        method=by.method,
        resource=resource,
        digest=digest or "",
        detail=detail,
    )
    id_ = audit.append(connection, [entry], action, revision)
    if by.entries is not None:
        by.entries.append(id_)


def now_us() -> int:
    """Microseconds since 1970 UTC."""
    return time.time_ns() // 1_000
