"""What an item is within DICOM: its frame, and the identifiers of its study, series and instance."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # All may be NULL: an item of an earlier version is no DICOM object.
    op.add_column("item", sa.Column("frame", sa.Integer(), nullable=True))
    for name in ("study_uid", "series_uid", "instance_uid"):
        op.add_column("item", sa.Column(name, sa.String(64), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
