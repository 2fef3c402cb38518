"""The tables of the catalog. Nothing else about the database is decided here.

Times are integer microseconds since 1970 UTC, and for people: what came first has the lower id. A row of `versions` is
READY or RETIRED (the other states have no row, see `lifecycle.py`); a RETIRED row may have lost its task and only waits
for its bytes to be let go.

A new store is made from these tables. Older ones are brought to them by `migrations/`: whoever changes a table here
writes a migration there that leads to the same.
"""

import secrets

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)

# Written into the database file (`PRAGMA user_version`): the number of the last migration.
SCHEMA_VERSION = 6
# Of the catalogs of before it is not known of which store they are.
FIRST_WITH_IDENTITY = 4
APPLICATION_ID = 0x41444D58  # "ADMX"

metadata = MetaData()


def new_etag() -> str:
    """Random, not counted: an etag must not repeat when what was deleted is made again, nor tell of other tenants."""
    return secrets.token_hex(8)


# One row. Every change of what is served adds one to `revision` and holds the row until it commits.
state = Table(
    "catalog_state",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

# One row: which store this is, as `store.json` beside the catalog says.
identity = Table(
    "identity",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("store_id", String(32), nullable=False),
)

# `default` is always there. `quotas`: those that somebody set, as JSON: {"<name>": number, …}.
tenants = Table(
    "tenants",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("etag", String(16), nullable=False, default=new_etag),
    Column("create_time_us", BigInteger, nullable=False),
    Column("update_time_us", BigInteger, nullable=False),
    Column("weight", Integer, nullable=False, default=1),
    Column("service_class", String(16), nullable=False, default="interactive"),
    Column("quotas", Text, nullable=False, default="{}"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", ForeignKey(tenants.c.tenant), nullable=False),
    Column("task", String(63), nullable=False),
    Column("etag", String(16), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("update_time_us", BigInteger, nullable=False),
    UniqueConstraint("tenant", "task"),
    sqlite_autoincrement=True,
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task_id", ForeignKey(tasks.c.id, ondelete="SET NULL")),
    Column("digest", String(64), nullable=False),
    Column("state", String(10), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("backbone_fingerprint", String(64), nullable=False),
    Column("manifest_json", Text, nullable=False),
    CheckConstraint("state = 'RETIRED' OR (state = 'READY' AND task_id IS NOT NULL)"),
    sqlite_autoincrement=True,
)
# Written as literals, not bound values: SQLite uses a partial index only for a condition it can read.
is_ready = versions.c.state == literal_column("'READY'")
is_retired = versions.c.state == literal_column("'RETIRED'")
Index("one_ready_version", versions.c.task_id, versions.c.digest, unique=True, sqlite_where=is_ready)
Index("retired_versions", versions.c.digest, sqlite_where=is_retired)
Index("versions_of_task", versions.c.task_id)
Index("versions_of_blob", versions.c.digest)

# What answers a task on one backbone. `current` and each of `earlier` (oldest first) is a split as JSON:
# [["<digest>", weight], …]. They name READY versions of the task only.
traffic = Table(
    "traffic",
    metadata,
    Column("task_id", ForeignKey(tasks.c.id, ondelete="CASCADE"), primary_key=True),
    Column("backbone_fingerprint", String(64), primary_key=True),
    Column("current", Text, nullable=False),
    Column("earlier", Text, nullable=False),
)

# Which things changed with which revision, for readers that only want the difference. Each revision has a row at least;
# the oldest are dropped, so a reader that does not find every revision since its own reads everything anew.
changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(16), primary_key=True),
    Column("tenant", String(63), primary_key=True),
    Column("name", String(255), primary_key=True),
    sqlite_with_rowid=False,
)

# What happened, for people: who did what, and how it ended. Each entry has the number after the last one's, and the
# hash of its content and of the hash before it (`audit_chain.py`). `action` and `revision` are those of a change of
# what is served; without one they are empty and 0.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("time_us", BigInteger, nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("principal", Text, nullable=False),
    Column("peer", String(64), nullable=False),
    Column("method", String(128), nullable=False),
    Column("resource", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("code", String(24), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("action", String(16), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Index("audit_of_tenant", "tenant", "time_us"),
    # By id as well, for whoever follows a tenant's: SQLite ends every index with the id.
    Index("audit_of_tenant_by_id", "tenant"),
    Index("audit_by_time", "time_us"),
)
# Of many entries, those by which a start tells what somebody has deleted.
is_change = audit.c.action != literal_column("''")
Index("audit_of_changes", audit.c.action, sqlite_where=is_change)

# What stands for the hash of an entry before the first.
FIRST_HASH = "0" * 64

# One row: where the chain of the audit begins (the last entry that was removed for its age, 0 for none) and ends.
audit_ends = Table(
    "audit_ends",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("removed_id", BigInteger, nullable=False),
    Column("removed_hash", String(64), nullable=False),
    Column("last_id", BigInteger, nullable=False),
    Column("last_hash", String(64), nullable=False),
)

# Versions that operators keep on the device, until the version goes. The oldest pin has the lowest id.
pins = Table(
    "pins",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task_id", ForeignKey(tasks.c.id, ondelete="CASCADE"), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    UniqueConstraint("task_id", "digest"),
    sqlite_autoincrement=True,
)

# What was answered to registrations that came with an id of their own, so that a retry is answered alike. What was
# asked: `task`, `digest`, `make_live`. No foreign key to a task: the answer outlives it. The oldest has the lowest id.
requests = Table(
    "requests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", ForeignKey(tenants.c.tenant), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("task", String(63), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("make_live", Boolean, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("already_exists", Boolean, nullable=False),
    UniqueConstraint("tenant", "request_id"),
    Index("requests_of_tenant", "tenant", "id"),
    sqlite_autoincrement=True,
)

# Who may call. `digest`: sha256 of the whole key, in hex; empty where a certificate stands for it. `rights` and
# `networks` are words with spaces between. A key is never made anew under an id, and goes with its tenant.
keys = Table(
    "keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key_id", String(12), nullable=False, unique=True),
    Column("tenant", ForeignKey(tenants.c.tenant, ondelete="CASCADE"), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("rights", String(64), nullable=False),
    Column("task_pattern", String(128), nullable=False),
    Column("networks", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("certificate_name", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("expire_time_us", BigInteger),
    Column("revoke_time_us", BigInteger),
    Index("keys_of_tenant", "tenant", "id"),
    sqlite_autoincrement=True,
)
of_certificate_in_force = (keys.c.certificate_name != literal_column("''")) & keys.c.revoke_time_us.is_(None)
Index("one_key_of_certificate", keys.c.certificate_name, unique=True, sqlite_where=of_certificate_in_force)

# The last day (`YYYY-MM-DD`, UTC) on which a key was used. Noted late and outside of revisions: nobody is served by it.
key_uses = Table(
    "key_uses",
    metadata,
    Column("key_id", ForeignKey(keys.c.key_id, ondelete="CASCADE"), primary_key=True),
    Column("day", String(10), nullable=False),
    sqlite_with_rowid=False,
)

# Tasks lent to other tenants, until the task or the tenant goes.
grants = Table(
    "grants",
    metadata,
    Column("task_id", ForeignKey(tasks.c.id, ondelete="CASCADE"), primary_key=True),
    Column("tenant", ForeignKey(tenants.c.tenant, ondelete="CASCADE"), primary_key=True),
    Column("create_time_us", BigInteger, nullable=False),
    Index("grants_to_tenant", "tenant"),
    sqlite_with_rowid=False,
)

# What tenants have used since `since_us`, and what they were refused by reason. Summed up outside of revisions.
usage = Table(
    "usage",
    metadata,
    Column("tenant", ForeignKey(tenants.c.tenant, ondelete="CASCADE"), primary_key=True),
    Column("since_us", BigInteger, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
usage_rejected = Table(
    "usage_rejected",
    metadata,
    Column("tenant", ForeignKey(tenants.c.tenant, ondelete="CASCADE"), primary_key=True),
    Column("reason", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
