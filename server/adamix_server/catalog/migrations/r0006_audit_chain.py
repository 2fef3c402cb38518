"""The audit tells who did what and how it ended, and becomes a chain of hashes. What it had is carried over into it.

Its entries are numbered anew, since refusals were taken from among them. What usage is counted from now on has been
since now.
"""

import hashlib
import json
import time

import sqlalchemy as sa
from alembic import op

revision = "0006_audit_chain"
down_revision = "0005_tenants"

_FIRST_HASH = "0" * 64
_AT_ONCE = 10_000


def upgrade() -> None:
    op.drop_index("audit_of_tenant", "audit")
    op.execute("ALTER TABLE audit RENAME TO audit_before")
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("method", sa.String(128), nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("code", sa.String(24), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("audit_of_tenant", "audit", ["tenant", "time_us"])
    op.create_index("audit_of_tenant_by_id", "audit", ["tenant"])
    op.create_index("audit_by_time", "audit", ["time_us"])
    op.create_index("audit_of_changes", "audit", ["action"], sqlite_where=sa.text("action != ''"))
    op.create_table(
        "audit_ends",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("removed_id", sa.BigInteger, nullable=False),
        sa.Column("removed_hash", sa.String(64), nullable=False),
        sa.Column("last_id", sa.BigInteger, nullable=False),
        sa.Column("last_hash", sa.String(64), nullable=False),
    )
    last_id, last_hash = _carry_over()
    op.execute(
        "INSERT INTO audit_ends (id, removed_id, removed_hash, last_id, last_hash) "  # noqa: S608 - numbers, hashes
        f"VALUES (1, 0, '{_FIRST_HASH}', {last_id}, '{last_hash}')"
    )
    op.drop_table("audit_before")

    # A store that nothing was ever written to is a new one.
    op.execute(
        "INSERT INTO usage (tenant, since_us, calls, input_tokens, generated_tokens) "  # noqa: S608 - a number
        f"SELECT tenant, {time.time_ns() // 1_000}, 0, 0, 0 FROM tenants, catalog_state WHERE revision > 0"
    )


def _carry_over() -> tuple[int, str]:
    """Copy the entries; gives the id and the hash of the last one."""
    connection = op.get_bind()
    before = sa.table("audit_before", *map(sa.column, ("id", *_BEFORE)))
    after = sa.table("audit", *map(sa.column, (*_AFTER, "hash")))
    query = sa.select(*(before.c[name] for name in _BEFORE)).order_by(before.c.id)
    last_id, last_hash = 0, _FIRST_HASH
    # Some at a time: nothing was ever removed from it for its age.
    for some in connection.execute(query).partitions(_AT_ONCE):
        rows: list[dict[str, object]] = []
        for time_us, revision_, tenant, task, action, digest, detail in some:
            last_id += 1
            is_failure = action == "fail"
            content = (
                last_id,
                time_us,
                tenant,
                "",
                "",
                "",
                f"tenants/{tenant}/tasks/{task}",
                digest or "",
                "INVALID_ARGUMENT" if is_failure else "OK",
                detail[:64] if is_failure else "",
                "" if is_failure else detail,
                "" if is_failure else action,
                revision_,
            )
            encoded = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
            last_hash = hashlib.sha256(last_hash.encode() + encoded).hexdigest()
            rows.append(dict(zip(_AFTER, content, strict=True), hash=last_hash))
        connection.execute(sa.insert(after), rows)
    return last_id, last_hash


_BEFORE = ("time_us", "revision", "tenant", "task", "action", "digest", "detail")
_AFTER = (
    "id",
    "time_us",
    "tenant",
    "principal",
    "peer",
    "method",
    "resource",
    "digest",
    "code",
    "reason",
    "detail",
    "action",
    "revision",
)
