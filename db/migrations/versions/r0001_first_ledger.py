"""The first ledger: batches, chunks, items, results, models, training runs, audit and leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite numbers rows by itself only where the key is called exactly INTEGER.
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_batch()
    _create_chunk()
    _create_item()
    _create_result()
    _create_model_version()
    _create_training_run()
    _create_audit()
    _create_lease()


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")


def _create_batch() -> None:
    op.create_table(
        "batch",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("manifest_digest", sa.String(length=64), nullable=True),
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("touched_at", sa.Double(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state = 'loading' OR manifest_digest IS NOT NULL", name=op.f("ck_batch_loaded_has_manifest")
        ),
        sa.CheckConstraint("state IN ('loading', 'open', 'paused', 'cancelled')", name=op.f("ck_batch_state_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
        sa.UniqueConstraint("manifest_digest", "model_digest", name=op.f("uq_batch_manifest_digest_model_digest")),
        sqlite_autoincrement=True,
    )


def _create_chunk() -> None:
    op.create_table(
        "chunk",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("batch_id", _KEY, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("rung_at", sa.Double(), nullable=True),
        sa.Column("recorded_at", sa.Double(), nullable=True),
        sa.Column("suspect_item_id", _KEY, nullable=True),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("open_count", sa.Integer(), nullable=False),
        sa.Column("done_count", sa.Integer(), nullable=False),
        sa.Column("referred_count", sa.Integer(), nullable=False),
        sa.Column("rejected_count", sa.Integer(), nullable=False),
        sa.Column("quarantined_count", sa.Integer(), nullable=False),
        sa.CheckConstraint("(state = 'done') = (open_count = 0)", name=op.f("ck_chunk_done_without_open")),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_chunk_running_has_lease")),
        sa.CheckConstraint("state IN ('open', 'running', 'done')", name=op.f("ck_chunk_state_known")),
        sa.CheckConstraint(
            "items = open_count + done_count + referred_count + rejected_count + quarantined_count",
            name=op.f("ck_chunk_counts_add_up"),
        ),
        sa.CheckConstraint(
            "open_count >= 0 AND done_count >= 0 AND referred_count >= 0"
            " AND rejected_count >= 0 AND quarantined_count >= 0",
            name=op.f("ck_chunk_counts_not_negative"),
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_chunk_batch_id_batch")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunk")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_chunk_batch_id"), "chunk", ["batch_id"], unique=False)
    op.create_index(op.f("ix_chunk_state_lease_until"), "chunk", ["state", "lease_until"], unique=False)


def _create_item() -> None:
    op.create_table(
        "item",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("batch_id", _KEY, nullable=False),
        sa.Column("chunk_id", _KEY, nullable=False),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=True),
        sa.Column("image_id", sa.Text(), nullable=True),
        sa.Column("lesion_id", sa.Text(), nullable=True),
        sa.Column("patient_ref", sa.Text(), nullable=True),
        sa.Column("age", sa.Double(), nullable=True),
        sa.Column("sex", sa.Text(), nullable=True),
        sa.Column("localization", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("image_digest", sa.String(length=64), nullable=True),
        sa.Column("input_digest", sa.String(length=64), nullable=True),
        sa.Column("marks", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "(state IN ('rejected', 'quarantined')) = (reason IS NOT NULL)", name=op.f("ck_item_reason_where_needed")
        ),
        sa.CheckConstraint("path IS NOT NULL OR state = 'rejected'", name=op.f("ck_item_path_unless_rejected")),
        sa.CheckConstraint(
            "state IN ('open', 'done', 'referred', 'rejected', 'quarantined')", name=op.f("ck_item_state_known")
        ),
        sa.CheckConstraint(
            "state NOT IN ('done', 'referred') OR input_digest IS NOT NULL", name=op.f("ck_item_verdict_has_digest")
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_item_batch_id_batch")),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunk.id"], name=op.f("fk_item_chunk_id_chunk")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_item")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_item_batch_id_id"), "item", ["batch_id", "id"], unique=False)
    op.create_index(
        op.f("ix_item_batch_id_reason"),
        "item",
        ["batch_id", "reason"],
        unique=False,
        sqlite_where=sa.text("reason IS NOT NULL"),
        postgresql_where=sa.text("reason IS NOT NULL"),
    )
    op.create_index(op.f("ix_item_chunk_id"), "item", ["chunk_id"], unique=False)


def _create_result() -> None:
    op.create_table(
        "result",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("input_digest", sa.String(length=64), nullable=False),
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("p_akiec", sa.Double(), nullable=False),
        sa.Column("p_bcc", sa.Double(), nullable=False),
        sa.Column("p_bkl", sa.Double(), nullable=False),
        sa.Column("p_df", sa.Double(), nullable=False),
        sa.Column("p_mel", sa.Double(), nullable=False),
        sa.Column("p_nv", sa.Double(), nullable=False),
        sa.Column("p_vasc", sa.Double(), nullable=False),
        sa.Column("diagnosis", sa.String(length=16), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("malignant_score", sa.Double(), nullable=False),
        sa.Column("referred", sa.Boolean(), nullable=False),
        sa.Column("refer_reason", sa.String(length=64), nullable=True),
        sa.Column("engine", sa.String(length=64), nullable=False),
        sa.Column("attention_path", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result")),
        sa.UniqueConstraint("input_digest", "model_digest", name=op.f("uq_result_input_digest_model_digest")),
    )


def _create_model_version() -> None:
    op.create_table(
        "model_version",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("backbone", sa.Text(), nullable=False),
        sa.Column("parent", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("data_digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint("state IN ('candidate', 'active', 'retired')", name=op.f("ck_model_version_state_known")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_model_version")),
    )
    op.create_index(
        "uq_model_version_active",
        "model_version",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )


def _create_training_run() -> None:
    op.create_table(
        "training_run",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("heartbeat", sa.Double(), nullable=True),
        sa.Column("model_digest", sa.String(length=64), nullable=True),
        sa.Column("gate", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name=op.f("ck_training_run_state_known")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_run")),
        sqlite_autoincrement=True,
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sa.UniqueConstraint("previous_hash", name=op.f("uq_audit_previous_hash")),
        sqlite_autoincrement=True,
    )


def _create_lease() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
