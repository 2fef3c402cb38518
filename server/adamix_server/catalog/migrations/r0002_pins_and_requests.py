"""Pinned versions, and answers that are given again to the same request."""

import sqlalchemy as sa
from alembic import op

revision = "0002_pins_and_requests"
down_revision = "0001_baseline"


def upgrade() -> None:
    op.create_table(
        "pins",
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.tenant"), primary_key=True),
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("task", sa.String(63), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("make_live", sa.Boolean, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("already_exists", sa.Boolean, nullable=False),
    )
    op.create_index("requests_of_tenant", "requests", ["tenant", "time_us"])
