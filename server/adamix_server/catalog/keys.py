"""Keys in the catalog: who may call, and what for. No secret is ever here: of a key only its sha256 is stored.

Every mutation is one transaction, as those of `store.Catalog`, except for the day on which a key was last used, which
nobody waits for. Knows neither callers nor how they show a key.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from sqlalchemy import Connection, String, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from adamix.errors import FailedPrecondition, InvalidRequest, NotFound, Overloaded
from adamix_server.access import api_keys
from adamix_server.access.api_keys import ApiKey
from adamix_server.access.principal import SERVER, Actor
from adamix_server.access.rights import Right
from adamix_server.catalog import changes, schema
from adamix_server.catalog.access import KeyRow
from adamix_server.catalog.access_reading import select_keys, to_key, write_rights
from adamix_server.catalog.changes import Change
from adamix_server.catalog.database import Database
from adamix_server.catalog.key_checks import (
    check_certificate_name,
    check_display_name,
    check_expire_time,
    check_key_rights,
    check_networks,
    check_task_pattern,
)
from adamix_server.catalog.paging import check_page_size, count_that_fit, make_token, read_token
from adamix_server.catalog.rows import Page
from adamix_server.catalog.traces import Traces
from adamix_server.limits.tenants import MAX_KEYS_PER_TENANT
from adamix_server.names import check_digest, check_name

_keys, _uses = schema.keys.c, schema.key_uses.c

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# What a key has in an answer besides its texts.
_ROW_BYTES = 512


class Keys:
    """Part of a `store.Catalog`, which says what all its methods raise."""

    def __init__(self, database: Database, traces: Traces) -> None:
        self._database = database
        self._traces = traces

    def create(
        self,
        tenant: str,
        key: ApiKey | None,
        *,
        rights: Collection[Right],
        task_pattern: str = "",
        networks: Collection[str] = (),
        display_name: str = "",
        expire_time_us: int | None = None,
        certificate_name: str = "",
        by: Actor = SERVER,
    ) -> KeyRow:
        """Let whoever shows a key call for a tenant. Of a tenant's keys that have ended, the first to end may be
        forgotten for it, unless it stood for a certificate.

        Args:
            key: None for whoever shows a certificate with `certificate_name`. Whose certificates have which names is
                not known here: to be asked before.

        Raises:
            InvalidRequest: neither a key nor a certificate's name, or both (`KEY_OR_CERTIFICATE`), or what
                `key_checks` refuses.
            NotFound: no such tenant (`TENANT_NOT_FOUND`).
            FailedPrecondition: there is a key with this id (`KEY_EXISTS`), or one for this certificate that is not
                revoked (`CERTIFICATE_TAKEN`).
            Overloaded: the tenant has too many keys in force (`TOO_MANY_KEYS`).
        """
        if (key is None) != bool(certificate_name):
            raise InvalidRequest(
                "a key has either a secret or the name of a certificate",
                reason="KEY_OR_CERTIFICATE",
                field="certificate_name",
            )
        if key is not None:
            check_digest(key.digest, "key.digest")
            if not api_keys.is_id(key.id):
                raise InvalidRequest("key.id is no id of a key", reason="ID_INVALID", field="key.id")
        now = changes.now_us()
        columns = {
            "tenant": tenant,
            "digest": "" if key is None else key.digest,
            "rights": write_rights(check_key_rights(rights)),
            "task_pattern": check_task_pattern(task_pattern),
            "networks": " ".join(check_networks(networks)),
            "display_name": check_display_name(display_name),
            "certificate_name": check_certificate_name(certificate_name),
            "create_time_us": now,
            "expire_time_us": check_expire_time(expire_time_us, now),
        }
        key_id = api_keys.make()[1].id if key is None else key.id
        with self._traces.changing() as connection:
            changes.check_tenant(connection, tenant)
            if _find(connection, key_id) is not None:
                raise FailedPrecondition("there is a key with this id", reason="KEY_EXISTS")
            taken = select(_keys.id).where(_keys.certificate_name == certificate_name, schema.of_certificate_in_force)
            if certificate_name and connection.execute(taken).first() is not None:
                raise FailedPrecondition(
                    "there is a key for this certificate; revoke it first", reason="CERTIFICATE_TAKEN"
                )
            changed = _make_room(connection, tenant, now)
            connection.execute(insert(schema.keys).values(key_id=key_id, **columns))
            changed.append(("key", tenant, key_id))
            changes.record_access(connection, tenant, "create_key", changed, detail=f"keys/{key_id}", by=by)
            return _get(connection, key_id)

    def get(self, key_id: str) -> KeyRow:
        """Raises NotFound."""
        with self._database.read() as connection:
            return _get(connection, key_id)

    def list(self, tenant: str, page_size: int = 0, page_token: str = "") -> Page[KeyRow]:
        """A tenant's keys, the last made first, also those that are revoked; as many as fit in a page.

        Raises:
            InvalidRequest: a malformed id, or a bad page size or token.
        """
        listing = ("keys", check_name(tenant, "tenant"))
        size, key = check_page_size(page_size), read_token(page_token, listing, int)
        query = select_keys.where(_keys.tenant == tenant).order_by(_keys.id.desc()).limit(size + 1)
        if key is not None:
            query = query.where(_keys.id < key[0])
        with self._database.read() as connection:
            found = connection.execute(query).all()
        rows = tuple(map(to_key, found[:size]))
        rows = rows[: count_that_fit(map(_bytes_of, rows))]
        return Page(rows, make_token(listing, [found[len(rows) - 1].id]) if len(found) > len(rows) else "")

    def revoke(self, key_id: str, *, tenant: str | None, by: Actor = SERVER) -> KeyRow:
        """End a key for good; one that is revoked stays as it is.

        Args:
            tenant: whose it must be; None if it may be anybody's.

        Raises:
            NotFound: no such key, or another tenant's: the same.
        """
        with self._traces.changing() as connection:
            row = _get(connection, key_id, tenant)
            if row.revoke_time_us is not None:
                return row
            revoked = update(schema.keys).where(_keys.key_id == key_id).values(revoke_time_us=changes.now_us())
            connection.execute(revoked)
            changed: list[Change] = [("key", row.tenant, key_id)]
            changes.record_access(connection, row.tenant, "revoke_key", changed, detail=f"keys/{key_id}", by=by)
            return _get(connection, key_id)

    def has_operator(self) -> bool:
        """Whether there is a key in force, with a secret, that may do everything."""
        query = select(_keys.rights).where(
            _keys.digest != "",
            _keys.revoke_time_us.is_(None),
            _keys.expire_time_us.is_(None) | (_keys.expire_time_us > changes.now_us()),
            _keys.rights.contains("admin"),
        )
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def last_used(self, ids: Iterable[str]) -> Mapping[str, str]:
        """The last day (`YYYY-MM-DD`, UTC) of those that were used, by id."""
        query = select(_uses.key_id, _uses.day).where(_uses.key_id.in_(list(ids)))
        with self._database.read() as connection:
            return dict(connection.execute(query).all())

    def note_used(self, days: Mapping[str, str]) -> None:
        """Note on which days keys were last used, by id. A day before the one that is noted already changes nothing,
        nor does a key that is no more.

        Raises InvalidRequest on what is no day.
        """
        if wrong := [day for day in days.values() if _DAY.fullmatch(day) is None]:
            raise InvalidRequest(f"{wrong[0]!r} is no day", field="day")
        with self._database.write() as connection:
            note_used(connection, days)


def note_used(connection: Connection, days: Mapping[str, str]) -> None:
    """As `Keys.note_used`, inside a write transaction."""
    if days:
        connection.execute(_NOTE_USED, [{"id": key_id, "on": day} for key_id, day in days.items()])


def _note_used() -> SqliteInsert:
    known = select(_keys.key_id, bindparam("on", type_=String)).where(_keys.key_id == bindparam("id"))
    row = sqlite_insert(schema.key_uses).from_select(["key_id", "day"], known)
    newest = {"day": func.max(_uses.day, row.excluded.day)}
    return row.on_conflict_do_update(index_elements=[_uses.key_id], set_=newest)


# Compiled once: thousands of keys may be used in a few seconds, and everybody else who writes waits.
_NOTE_USED = _note_used()


def _find(connection: Connection, key_id: str) -> KeyRow | None:
    row = connection.execute(select_keys.where(_keys.key_id == key_id)).one_or_none()
    return None if row is None else to_key(row)


def _get(connection: Connection, key_id: str, tenant: str | None = None) -> KeyRow:
    row = _find(connection, key_id)
    if row is None or tenant not in (None, row.tenant):
        raise NotFound("key not found")
    return row


def _make_room(connection: Connection, tenant: str, now_us: int) -> list[Change]:
    """Forget a key that has ended if there is no room for another one, and say which. Raises Overloaded."""
    mine = _keys.tenant == tenant
    if int(connection.scalar(select(func.count()).select_from(schema.keys).where(mine)) or 0) < MAX_KEYS_PER_TENANT:
        return []
    never = (1 << 63) - 1
    end_us = func.min(func.coalesce(_keys.revoke_time_us, never), func.coalesce(_keys.expire_time_us, never))
    # One that stood for a certificate keeps that out, which would else be what it says of itself again.
    may_go = mine & (_keys.certificate_name == "") & (end_us <= now_us)
    ended = select(_keys.key_id).where(may_go).order_by(end_us, _keys.id).limit(1)
    if (first := connection.scalar(ended)) is None:
        raise Overloaded(
            f"tenant {tenant} has {MAX_KEYS_PER_TENANT:,} keys in force, which is the most; revoke one",
            reason="TOO_MANY_KEYS",
        )
    connection.execute(delete(schema.keys).where(_keys.key_id == first))
    return [("key", tenant, first)]


def _bytes_of(row: KeyRow) -> int:
    texts = (row.display_name, row.certificate_name, row.task_pattern, *row.networks)
    return _ROW_BYTES + sum(len(text.encode()) for text in texts)
