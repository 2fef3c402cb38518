"""Tenants with shares and quotas, keys, grants and usage. Every store has the tenant `default`."""

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0005_tenants"
down_revision = "0004_identity"


def upgrade() -> None:
    # Made anew under its own name, not renamed: SQLite would change what refers to it along with it.
    op.execute("CREATE TABLE tenants_before AS SELECT * FROM tenants")
    op.drop_table("tenants")
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("etag", sa.String(16), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("update_time_us", sa.BigInteger, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("service_class", sa.String(16), nullable=False),
        sa.Column("quotas", sa.Text, nullable=False),
    )
    columns = "tenant, etag, create_time_us, update_time_us, weight, service_class, quotas"
    op.execute(
        f"INSERT INTO tenants ({columns}) SELECT tenant, lower(hex(randomblob(8))), create_time_us, create_time_us, "  # noqa: S608 - constants
        "1, 'interactive', '{}' FROM tenants_before"
    )
    op.drop_table("tenants_before")
    now_us = time.time_ns() // 1_000
    op.execute(
        f"INSERT INTO tenants ({columns}) VALUES "  # noqa: S608 - constants
        f"('default', '{secrets.token_hex(8)}', {now_us}, {now_us}, 1, 'interactive', '{{}}') ON CONFLICT DO NOTHING"
    )

    op.create_table(
        "keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key_id", sa.String(12), nullable=False, unique=True),
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.tenant", ondelete="CASCADE"), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("rights", sa.String(64), nullable=False),
        sa.Column("task_pattern", sa.String(128), nullable=False),
        sa.Column("networks", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("certificate_name", sa.Text, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("expire_time_us", sa.BigInteger),
        sa.Column("revoke_time_us", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("keys_of_tenant", "keys", ["tenant", "id"])
    in_force = sa.text("certificate_name != '' AND revoke_time_us IS NULL")
    op.create_index("one_key_of_certificate", "keys", ["certificate_name"], unique=True, sqlite_where=in_force)
    op.create_table(
        "key_uses",
        sa.Column("key_id", sa.String(12), sa.ForeignKey("keys.key_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("day", sa.String(10), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "grants",
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.tenant", ondelete="CASCADE"), primary_key=True),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("grants_to_tenant", "grants", ["tenant"])
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.tenant", ondelete="CASCADE"), primary_key=True),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("generated_tokens", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_rejected",
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.tenant", ondelete="CASCADE"), primary_key=True),
        sa.Column("reason", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
