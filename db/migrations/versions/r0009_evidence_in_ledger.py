"""Evidence is a column of the verdict; until now it was a picture in the artifact store."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("result", sa.Column("evidence", sa.LargeBinary(), nullable=True))
    # A name that follows from the row's digests. The pictures themselves are swept, see `producer.erasing`.
    op.drop_column("result", "evidence_path")


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
