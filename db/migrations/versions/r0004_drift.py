"""How far batches are from what their model was judged on."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# SQLite numbers rows by itself only where the key is called exactly INTEGER.
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("result", sa.Column("distance", sa.Double(), nullable=True))
    op.add_column("model_version", sa.Column("reference", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "drift",
        sa.Column("batch_id", _KEY, nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("indices", sa.JSON(), nullable=False),
        sa.Column("compared_with", _KEY, nullable=True),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("measured_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_drift_batch_id_batch")),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_drift")),
    )


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
