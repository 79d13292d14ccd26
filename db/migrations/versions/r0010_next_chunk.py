"""A batch's next chunk is found by an index: workers ask for it before each one's end."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_chunk_batch_id_state_id", "chunk", ["batch_id", "state", "id"])
    # The new one serves whatever this one did.
    op.drop_index("ix_chunk_batch_id", "chunk")


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
