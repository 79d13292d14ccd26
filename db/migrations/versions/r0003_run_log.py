"""The log of training runs, and how many workers a run has cost."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# SQLite numbers rows by itself only where the key is called exactly INTEGER.
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("training_run", sa.Column("crashes", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "run_event",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("run_id", _KEY, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["training_run.id"], name=op.f("fk_run_event_run_id_training_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_event")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_run_event_run_id_id"), "run_event", ["run_id", "id"])


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
