"""The tables as they were first: tasks, versions, traffic and the audit."""

import sqlalchemy as sa
from alembic import op

revision = "0001_baseline"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "catalog_state",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("task", sa.String(63), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64)),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_revision", "audit", ["revision"])
    op.create_index("audit_of_tenant", "audit", ["tenant", "action", "id"])
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.tenant"), nullable=False),
        sa.Column("task", sa.String(63), nullable=False),
        sa.Column("etag", sa.String(16), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("update_time_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tenant", "task"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id", ondelete="SET NULL")),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("backbone_fingerprint", sa.String(64), nullable=False),
        sa.Column("manifest_json", sa.Text, nullable=False),
        sa.CheckConstraint("state = 'RETIRED' OR (state = 'READY' AND task_id IS NOT NULL)"),
        sqlite_autoincrement=True,
    )
    ready, retired = sa.text("state = 'READY'"), sa.text("state = 'RETIRED'")
    op.create_index("one_ready_version", "versions", ["task_id", "digest"], unique=True, sqlite_where=ready)
    op.create_index("retired_versions", "versions", ["digest"], sqlite_where=retired)
    op.create_index("versions_of_task", "versions", ["task_id"])
    op.create_index("versions_of_blob", "versions", ["digest"])
    op.create_table(
        "traffic",
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("backbone_fingerprint", sa.String(64), primary_key=True),
        sa.Column("current", sa.Text, nullable=False),
        sa.Column("earlier", sa.Text, nullable=False),
    )
    op.execute("INSERT INTO catalog_state (id, revision) VALUES (1, 0)")
