"""Tables of the ledger: batches, chunks, items, labels, results, models, training runs, audit and leases."""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from db.columns import BigKey, ForeignText, one_of, state_column

#: The seven classes of HAM10000 in the order of the probability columns.
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

#: How a diagnosis was made, the best founded first (HAM10000's words).
DX_TYPES = ("histo", "confocal", "consensus", "follow_up")


class BatchState(StrEnum):
    """What may happen to a batch: only an open one is worked on."""

    LOADING = "loading"
    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class ChunkState(StrEnum):
    """Whether a chunk waits, is leased by a worker, or has no open item left."""

    OPEN = "open"
    RUNNING = "running"
    DONE = "done"


class ItemState(StrEnum):
    """The five ways an item is counted; every item is in exactly one."""

    OPEN = "open"
    DONE = "done"
    REFERRED = "referred"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"


class ModelState(StrEnum):
    """A model version waits, is the one new batches take, or was replaced."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    RETIRED = "retired"


class RunState(StrEnum):
    """Where a training run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Base(DeclarativeBase):
    """All tables of the ledger, with readable constraint names."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Batch(Base):
    """One archive under one model."""

    __tablename__ = "batch"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    name: Mapped[str] = mapped_column(ForeignText)
    #: The archive's root; hosts may mount it elsewhere.
    source: Mapped[str] = mapped_column(ForeignText)
    state: Mapped[BatchState] = mapped_column(state_column(BatchState))
    #: Higher goes first.
    priority: Mapped[int] = mapped_column(Integer, default=0)
    #: NULL while loading, so that the unique key holds for loaded batches only.
    manifest_digest: Mapped[str | None] = mapped_column(String(64))
    model_digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Double)
    #: Last sign of life of the producer that loads it.
    touched_at: Mapped[float] = mapped_column(Double)
    opened_at: Mapped[float | None] = mapped_column(Double)

    __table_args__ = (
        UniqueConstraint("manifest_digest", "model_digest"),
        one_of(BatchState),
        CheckConstraint("state = 'loading' OR manifest_digest IS NOT NULL", name="loaded_has_manifest"),
        # A row number that is never given twice: a message about a discarded batch must not meet another one.
        {"sqlite_autoincrement": True},
    )


class Chunk(Base):
    """Up to a few hundred items of a batch, leased, screened and counted together."""

    __tablename__ = "chunk"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    batch_id: Mapped[int] = mapped_column(BigKey, ForeignKey("batch.id"))
    state: Mapped[ChunkState] = mapped_column(state_column(ChunkState))
    #: The fence: raised by every claim, and only its holder may write.
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    #: Expired leases that were taken over.
    crashes: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None] = mapped_column(Double)
    worker: Mapped[str | None] = mapped_column(Text)
    rung_at: Mapped[float | None] = mapped_column(Double)
    recorded_at: Mapped[float | None] = mapped_column(Double)
    #: The item being opened in suspect mode. No foreign key: item points at chunk already, and two tables that
    #: point at each other can neither be created nor emptied in order.
    suspect_item_id: Mapped[int | None] = mapped_column(BigKey)
    items: Mapped[int] = mapped_column(Integer)
    open_count: Mapped[int] = mapped_column(Integer)
    done_count: Mapped[int] = mapped_column(Integer, default=0)
    referred_count: Mapped[int] = mapped_column(Integer, default=0)
    rejected_count: Mapped[int] = mapped_column(Integer, default=0)
    quarantined_count: Mapped[int] = mapped_column(Integer, default=0)

    __table_args__ = (
        # A worker that is near the end of a chunk asks for the batch's next.
        Index(None, "batch_id", "state", "id"),
        # The feeder looks every second for what is not done.
        Index(None, "state", "lease_until"),
        one_of(ChunkState),
        CheckConstraint(
            "items = open_count + done_count + referred_count + rejected_count + quarantined_count",
            name="counts_add_up",
        ),
        CheckConstraint(
            "open_count >= 0 AND done_count >= 0 AND referred_count >= 0"
            " AND rejected_count >= 0 AND quarantined_count >= 0",
            name="counts_not_negative",
        ),
        CheckConstraint("(state = 'done') = (open_count = 0)", name="done_without_open"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="running_has_lease"),
        {"sqlite_autoincrement": True},
    )


class Item(Base):
    """One file found in the archive, or one metadata row whose file is missing."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    batch_id: Mapped[int] = mapped_column(BigKey, ForeignKey("batch.id"))
    chunk_id: Mapped[int] = mapped_column(BigKey, ForeignKey("chunk.id"))
    path: Mapped[str | None] = mapped_column(ForeignText)
    size: Mapped[int | None] = mapped_column(BigInteger)
    mtime_ns: Mapped[int | None] = mapped_column(BigInteger)
    image_id: Mapped[str | None] = mapped_column(ForeignText)
    lesion_id: Mapped[str | None] = mapped_column(ForeignText)
    patient_ref: Mapped[str | None] = mapped_column(ForeignText)
    #: Years.
    age: Mapped[float | None] = mapped_column(Double)
    sex: Mapped[str | None] = mapped_column(ForeignText)
    localization: Mapped[str | None] = mapped_column(ForeignText)
    label: Mapped[str | None] = mapped_column(ForeignText)
    #: Of a DICOM object with several frames: which one, from 1.
    frame: Mapped[int | None] = mapped_column(Integer)
    #: Of a DICOM object; a UID is at most 64 characters (PS3.5, 9.1).
    study_uid: Mapped[str | None] = mapped_column(String(64))
    series_uid: Mapped[str | None] = mapped_column(String(64))
    instance_uid: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[ItemState] = mapped_column(state_column(ItemState))
    #: Why it was rejected or quarantined: a code, never free text.
    reason: Mapped[str | None] = mapped_column(String(64))
    image_digest: Mapped[str | None] = mapped_column(String(64))
    input_digest: Mapped[str | None] = mapped_column(String(64))
    #: Attempts that died while this item was the one being opened.
    marks: Mapped[int] = mapped_column(Integer, default=0)

    __table_args__ = (
        Index(None, "chunk_id"),
        # The report reads a batch page by page in the order of the ids.
        Index(None, "batch_id", "id"),
        # Few items have a reason, so counting reasons must not walk over the others.
        Index(
            None,
            "batch_id",
            "reason",
            sqlite_where=text("reason IS NOT NULL"),
            postgresql_where=text("reason IS NOT NULL"),
        ),
        one_of(ItemState),
        CheckConstraint("(state IN ('rejected', 'quarantined')) = (reason IS NOT NULL)", name="reason_where_needed"),
        CheckConstraint("state NOT IN ('done', 'referred') OR input_digest IS NOT NULL", name="verdict_has_digest"),
        CheckConstraint("path IS NOT NULL OR state = 'rejected'", name="path_unless_rejected"),
        {"sqlite_autoincrement": True},
    )


class Label(Base):
    """A confirmed diagnosis of an item's lesion, as somebody fed it back."""

    __tablename__ = "label"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    item_id: Mapped[int] = mapped_column(BigKey, ForeignKey("item.id"))
    dx: Mapped[str] = mapped_column(String(16))
    dx_type: Mapped[str] = mapped_column(String(16))
    labelled_by: Mapped[str] = mapped_column(ForeignText)
    #: An ISO 8601 date.
    labelled_on: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(Double)

    __table_args__ = (
        UniqueConstraint("item_id", "dx", "dx_type", "labelled_by", "labelled_on"),
        CheckConstraint(f"dx IN {CLASSES}", name="dx_known"),
        CheckConstraint(f"dx_type IN {DX_TYPES}", name="dx_type_known"),
        {"sqlite_autoincrement": True},
    )


class Result(Base):
    """What one model says about one input; one row however many items show that input."""

    __tablename__ = "result"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    input_digest: Mapped[str] = mapped_column(String(64))
    model_digest: Mapped[str] = mapped_column(String(64))
    p_akiec: Mapped[float] = mapped_column(Double)
    p_bcc: Mapped[float] = mapped_column(Double)
    p_bkl: Mapped[float] = mapped_column(Double)
    p_df: Mapped[float] = mapped_column(Double)
    p_mel: Mapped[float] = mapped_column(Double)
    p_nv: Mapped[float] = mapped_column(Double)
    p_vasc: Mapped[float] = mapped_column(Double)
    diagnosis: Mapped[str] = mapped_column(String(16))
    confidence: Mapped[float] = mapped_column(Double)
    malignant_score: Mapped[float] = mapped_column(Double)
    #: How far the image is from what the model saw in training; NULL where an earlier version recorded it.
    distance: Mapped[float | None] = mapped_column(Double)
    referred: Mapped[bool]
    refer_reason: Mapped[str | None] = mapped_column(String(64))
    engine: Mapped[str] = mapped_column(String(64))
    #: Which places speak for the diagnosis, see `db.evidence`; NULL of a model without, and of earlier versions.
    evidence: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[float] = mapped_column(Double)

    __table_args__ = (UniqueConstraint("input_digest", "model_digest"),)


class ModelVersion(Base):
    """A model that was registered, by the digest of its manifest."""

    __tablename__ = "model_version"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    backbone: Mapped[str] = mapped_column(Text)
    parent: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[ModelState] = mapped_column(state_column(ModelState))
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    data_digest: Mapped[str] = mapped_column(String(64))
    #: Histograms of held-out images, see `model.reference`; NULL where the model states none.
    reference: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[float] = mapped_column(Double)

    __table_args__ = (
        one_of(ModelState),
        # At most one active model, whoever promotes at the same moment.
        Index(
            "uq_model_version_active",
            "state",
            unique=True,
            sqlite_where=text("state = 'active'"),
            postgresql_where=text("state = 'active'"),
        ),
    )


class Drift(Base):
    """How far a finished batch is from its model's reference; one row a batch."""

    __tablename__ = "drift"

    batch_id: Mapped[int] = mapped_column(BigKey, ForeignKey("batch.id"), primary_key=True)
    #: Scored images.
    images: Mapped[int] = mapped_column(Integer)
    #: Images in each bin of each feature.
    counts: Mapped[dict[str, Any]] = mapped_column(JSON)
    #: Population stability index of each feature.
    indices: Mapped[dict[str, Any]] = mapped_column(JSON)
    #: The batch that it was compared with; NULL where that was the model's own reference.
    compared_with: Mapped[int | None] = mapped_column(BigKey)
    #: Whether later batches of this model are compared with this one.
    accepted: Mapped[bool]
    measured_at: Mapped[float] = mapped_column(Double)


class TrainingRun(Base):
    """One retraining, from queue to gate."""

    __tablename__ = "training_run"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    state: Mapped[RunState] = mapped_column(state_column(RunState))
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    #: Workers lost since the last epoch.
    crashes: Mapped[int] = mapped_column(Integer, default=0)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    heartbeat: Mapped[float | None] = mapped_column(Double)
    model_digest: Mapped[str | None] = mapped_column(String(64))
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double)

    __table_args__ = (one_of(RunState), {"sqlite_autoincrement": True})


class RunEvent(Base):
    """A line of a training run's log."""

    __tablename__ = "run_event"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    run_id: Mapped[int] = mapped_column(BigKey, ForeignKey("training_run.id"))
    at: Mapped[float] = mapped_column(Double)
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)

    __table_args__ = (Index(None, "run_id", "id"), {"sqlite_autoincrement": True})


class AuditEntry(Base):
    """Who did what to which subject; each entry carries the hash of the one before."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    at: Mapped[float] = mapped_column(Double)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text, default="")
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))

    # Unique: a chain cannot fork.
    __table_args__ = (UniqueConstraint("previous_hash"), {"sqlite_autoincrement": True})


class Device(Base):
    """What a worker's pool child scores on, as it last said; one row a worker, and nothing depends on it."""

    __tablename__ = "device"

    #: The Celery node's name.
    worker: Mapped[str] = mapped_column(Text, primary_key=True)
    #: "gpu" or "cpu".
    kind: Mapped[str] = mapped_column(String(8))
    #: In use, as TensorFlow counts it; NULL on a CPU.
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: Images that the network sees at once.
    batch_size: Mapped[int] = mapped_column(Integer)
    seen_at: Mapped[float] = mapped_column(Double)


class Lease(Base):
    """A role that one process at a time may hold, such as the feeder's."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(Text)
    lease_until: Mapped[float] = mapped_column(Double)
