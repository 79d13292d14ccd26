"""Confirmed diagnoses that people feed back."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# SQLite numbers rows by itself only where the key is called exactly INTEGER.
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "label",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("item_id", _KEY, nullable=False),
        sa.Column("dx", sa.String(length=16), nullable=False),
        sa.Column("dx_type", sa.String(length=16), nullable=False),
        sa.Column("labelled_by", sa.Text(), nullable=False),
        sa.Column("labelled_on", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint("dx IN ('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc')", name=op.f("ck_label_dx_known")),
        sa.CheckConstraint(
            "dx_type IN ('histo', 'confocal', 'consensus', 'follow_up')", name=op.f("ck_label_dx_type_known")
        ),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name=op.f("fk_label_item_id_item")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
        sa.UniqueConstraint(
            "item_id",
            "dx",
            "dx_type",
            "labelled_by",
            "labelled_on",
            name=op.f("uq_label_item_id_dx_dx_type_labelled_by_labelled_on"),
        ),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
