"""What is drawn over an image is the evidence for its diagnosis; until now it was soft attention."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Pictures that are there stay what they were until they are drawn anew; CHANGELOG.md says how.
    op.execute("ALTER TABLE result RENAME COLUMN attention_path TO evidence_path")


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
