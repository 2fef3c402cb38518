"""A change log for readers, apart from the audit, which is for people.

It begins empty: no reader goes on from a snapshot of before, since no process of before may use the store; and one that
finds a revision missing reads everything.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003_change_log"
down_revision = "0002_pins_and_requests"


def upgrade() -> None:
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.drop_index("ix_audit_revision", "audit")
