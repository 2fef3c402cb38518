"""Which store a catalog is of; pins and remembered answers in the order they came, whatever the clock said."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004_identity"
down_revision = "0003_change_log"


def upgrade() -> None:
    op.create_table(
        "identity",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("store_id", sa.String(32), nullable=False),
    )
    identity = sa.table("identity", sa.column("id"), sa.column("store_id"))
    op.bulk_insert(identity, [{"id": 1, "store_id": secrets.token_hex(16)}])

    op.execute("ALTER TABLE pins RENAME TO pins_before")
    op.create_table(
        "pins",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("task_id", sa.Integer, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("task_id", "digest"),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO pins (task_id, digest, create_time_us) "
        "SELECT task_id, digest, create_time_us FROM pins_before ORDER BY create_time_us, digest"
    )
    op.drop_table("pins_before")

    op.drop_index("requests_of_tenant", "requests")
    op.execute("ALTER TABLE requests RENAME TO requests_before")
    op.create_table(
        "requests",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.tenant"), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("task", sa.String(63), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("make_live", sa.Boolean, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("already_exists", sa.Boolean, nullable=False),
        sa.UniqueConstraint("tenant", "request_id"),
        sqlite_autoincrement=True,
    )
    columns = "tenant, request_id, time_us, task, digest, make_live, create_time_us, live, pinned, already_exists"
    op.execute(f"INSERT INTO requests ({columns}) SELECT {columns} FROM requests_before ORDER BY time_us, request_id")  # noqa: S608 - constants
    op.drop_table("requests_before")
    op.create_index("requests_of_tenant", "requests", ["tenant", "id"])
    # To copy no rows is to write down that the last of them had the number 0.
    op.execute("DELETE FROM sqlite_sequence WHERE name IN ('pins', 'requests') AND seq = 0")
