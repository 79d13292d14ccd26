"""Batches: loading an archive into the ledger, finding batches again, pausing and cancelling them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, delete, func, insert, select, update

from db.audit import append_entry
from db.bulk import insert_items
from db.clock import clock
from db.control import cancel_batch, pause_batch, refusal, resume_batch
from db.errors import UnknownBatch, WriteRefused
from db.session import read, write
from db.tables import Batch, BatchState, Chunk, ChunkState, Item, ItemState, Label

__all__ = [
    "BatchRow",
    "ItemRow",
    "Loaded",
    "add_chunk",
    "cancel_batch",
    "delete_chunks",
    "delete_items",
    "discard_stale_loading",
    "find_batch",
    "finish_loading",
    "get_batch",
    "insert_chunk",
    "latest_batch",
    "list_batches",
    "pause_batch",
    "resume_batch",
    "start_batch",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRow:
    """One file found, or one metadata row, on its way into the ledger."""

    #: Relative to the archive's root; None where a metadata row names no sound path.
    path: str | None
    #: Bytes.
    size: int | None = None
    mtime_ns: int | None = None
    image_id: str | None = None
    lesion_id: str | None = None
    patient_ref: str | None = None
    #: Years.
    age: float | None = None
    sex: str | None = None
    localization: str | None = None
    label: str | None = None
    #: Of a DICOM object with several frames: which one, from 1.
    frame: int | None = None
    #: Of a DICOM object.
    study_uid: str | None = None
    series_uid: str | None = None
    instance_uid: str | None = None
    #: Reason code where it is known at submit that there is nothing to score.
    rejected: str | None = None

    def __post_init__(self) -> None:
        """Refuse an item that could be neither opened nor explained."""
        if self.path is None and self.rejected is None:
            raise ValueError("An item without a path must be rejected with a reason.")


#: Fields of `ItemRow` that are columns under the same name.
_FIELDS: Final = tuple(field.name for field in fields(ItemRow) if field.name != "rejected")
_COLUMNS: Final = ("batch_id", "chunk_id", "state", "reason", "marks", *_FIELDS)
_values_of: Final = attrgetter(*_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What became of a batch that was loaded."""

    batch_id: int
    #: The same manifest and model were there already; this is that batch, and the new one is gone.
    existed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """A batch as the ledger has it."""

    id: int
    name: str
    source: str
    state: BatchState
    priority: int
    model_digest: str
    manifest_digest: str | None
    #: When it opened, or while it is loading when that began; seconds since 1970.
    created_at: float
    items: int
    chunks: int


def start_batch(engine: Engine, *, name: str, source: str, model_digest: str, priority: int = 0) -> int:
    """Begin a batch in state loading; no worker sees it yet. Not idempotent; its own transaction.

    Args:
        engine: The ledger.
        name: What the user calls it.
        source: Root of the archive.
        model_digest: The model that the whole batch is pinned to.
        priority: Higher goes first.

    Returns:
        The new batch's id.
    """
    with write(engine) as connection:
        row = insert(Batch).values(
            name=name,
            source=source,
            state=BatchState.LOADING,
            priority=priority,
            model_digest=model_digest,
            created_at=clock(),
            touched_at=clock(),
        )
        return connection.execute(row.returning(Batch.id)).scalar_one()


def add_chunk(engine: Engine, batch_id: int, items: Sequence[ItemRow]) -> int:
    """Add one chunk with its items to a loading batch. Not idempotent; its own transaction.

    Rejected rows count at once, and a chunk without an open item is done at once.

    Args:
        engine: The ledger.
        batch_id: A batch in state loading.
        items: At least one item.

    Returns:
        The new chunk's id.

    Raises:
        UnknownBatch: If the batch is not there, or was discarded as stale.
        WrongBatchState: If the batch is not loading any more.
        ValueError: If there is no item.
    """
    if not items:
        raise ValueError("A chunk needs at least one item.")
    rejected = sum(item.rejected is not None for item in items)
    with write(engine) as connection:
        chunk_id = insert_chunk(connection, batch_id, items=len(items), rejected=rejected)
        insert_items(connection, _COLUMNS, [_row(item, batch_id, chunk_id) for item in items])
        return chunk_id


def insert_chunk(connection: Connection, batch_id: int, *, items: int, rejected: int) -> int:
    """Insert the row of one chunk of a loading batch, inside the caller's transaction; its items are the caller's part.

    Args:
        connection: The caller's connection.
        batch_id: A batch in state loading.
        items: How many items it will have.
        rejected: How many of them are rejected already.

    Returns:
        The new chunk's id.

    Raises:
        UnknownBatch: If the batch is not there, or was discarded as stale.
        WrongBatchState: If the batch is not loading any more.
    """
    open_count = items - rejected
    # Also locks the batch, so that it cannot be discarded as stale in between.
    touch = update(Batch).where(Batch.id == batch_id, Batch.state == BatchState.LOADING)
    if connection.execute(touch.values(touched_at=clock())).rowcount == 0:
        raise refusal(connection, batch_id, "takes no more chunks")
    chunk = insert(Chunk).values(
        batch_id=batch_id,
        state=ChunkState.OPEN if open_count else ChunkState.DONE,
        items=items,
        open_count=open_count,
        rejected_count=rejected,
        recorded_at=None if open_count else clock(),
    )
    return connection.execute(chunk.returning(Chunk.id)).scalar_one()


def _row(item: ItemRow, batch_id: int, chunk_id: int) -> tuple[Any, ...]:
    state = ItemState.OPEN if item.rejected is None else ItemState.REJECTED
    return batch_id, chunk_id, state, item.rejected, 0, *_values_of(item)


def finish_loading(engine: Engine, batch_id: int, manifest_digest: str, actor: str = "nobody") -> Loaded:
    """Open a loaded batch to the workers. Idempotent; its own transactions; audited.

    Where a batch of the same manifest and model exists, the one that was being loaded is deleted and the existing one
    returned: also when two producers load the same archive at the same moment.

    Args:
        engine: The ledger.
        batch_id: The batch that was loaded.
        manifest_digest: Digest over everything that was loaded.
        actor: Who submits it.

    Returns:
        The batch to go on with.

    Raises:
        UnknownBatch: If the batch is not there.
        WrongBatchState: If the batch was opened before with another manifest.
    """
    try:
        _open_batch(engine, batch_id, manifest_digest, actor)
    except WriteRefused:
        model_digest = get_batch(engine, batch_id).model_digest
        existing = find_batch(engine, manifest_digest, model_digest)
        if existing is None:
            raise
        with write(engine) as connection:
            _delete_loading(connection, [batch_id])
        return Loaded(batch_id=existing, existed=True)
    return Loaded(batch_id=batch_id, existed=False)


def _open_batch(engine: Engine, batch_id: int, manifest_digest: str, actor: str) -> None:
    with write(engine) as connection:
        opening = update(Batch).where(Batch.id == batch_id, Batch.state == BatchState.LOADING)
        values = {"state": BatchState.OPEN, "manifest_digest": manifest_digest, "opened_at": clock()}
        if connection.execute(opening.values(values)).rowcount:
            append_entry(connection, actor, "submit_batch", f"batch {batch_id}", f"manifest {manifest_digest}")
            return
        # A lost answer to the COMMIT makes the producer ask again.
        before = select(Batch.manifest_digest).where(Batch.id == batch_id)
        if connection.execute(before).scalar_one_or_none() != manifest_digest:
            raise refusal(connection, batch_id, "cannot be opened with another manifest")


def find_batch(engine: Engine, manifest_digest: str, model_digest: str) -> int | None:
    """Find the batch of a manifest and a model; reads only.

    Args:
        engine: The ledger.
        manifest_digest: Digest of the manifest.
        model_digest: Digest of the model.

    Returns:
        Its id, or None.
    """
    wanted = select(Batch.id).where(Batch.manifest_digest == manifest_digest, Batch.model_digest == model_digest)
    with read(engine) as connection:
        return connection.execute(wanted).scalar_one_or_none()


def discard_stale_loading(engine: Engine, source: str, idle_seconds: float = 60) -> int:
    """Delete what producers that died left half loaded. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        source: Root of the archive.
        idle_seconds: A loading batch that got no chunk for so long is stale.

    Returns:
        How many batches were deleted.
    """
    stale = select(Batch.id).where(
        Batch.state == BatchState.LOADING, Batch.source == source, Batch.touched_at < clock() - idle_seconds
    )
    with write(engine) as connection:
        ids = connection.execute(stale.order_by(Batch.id).with_for_update()).scalars().all()
        _delete_loading(connection, ids)
        return len(ids)


def _delete_loading(connection: Connection, ids: Sequence[int]) -> None:
    for batch_id in ids:
        delete_chunks(connection, Chunk.batch_id == batch_id)
        connection.execute(delete(Batch).where(Batch.id == batch_id, Batch.state == BatchState.LOADING))


def delete_chunks(connection: Connection, which: ColumnElement[bool]) -> int:
    """Delete chunks with their items, inside the caller's transaction; results stay.

    Args:
        connection: The caller's connection.
        which: A condition on chunks.

    Returns:
        How many items were deleted.
    """
    items = delete_items(connection, Item.chunk_id.in_(select(Chunk.id).where(which)))
    connection.execute(delete(Chunk).where(which))
    return items


def delete_items(connection: Connection, which: ColumnElement[bool]) -> int:
    """Delete items with their labels, inside the caller's transaction; counts and results are the caller's part.

    Args:
        connection: The caller's connection.
        which: A condition on items.

    Returns:
        How many items were deleted.
    """
    connection.execute(delete(Label).where(Label.item_id.in_(select(Item.id).where(which))))
    return connection.execute(delete(Item).where(which)).rowcount


def get_batch(engine: Engine, batch_id: int) -> BatchRow:
    """Look a batch up; reads only.

    Args:
        engine: The ledger.
        batch_id: Its id.

    Returns:
        The batch.

    Raises:
        UnknownBatch: If it is not there.
    """
    with read(engine) as connection:
        row = connection.execute(_batches().where(Batch.id == batch_id)).one_or_none()
    if row is None:
        raise UnknownBatch(batch_id)
    return _batch_row(row)


def list_batches(engine: Engine, limit: int = 20) -> list[BatchRow]:
    """List batches, newest first; reads only.

    Args:
        engine: The ledger.
        limit: At most so many.

    Returns:
        The batches, those that are loading included.
    """
    with read(engine) as connection:
        rows = connection.execute(_batches().order_by(Batch.id.desc()).limit(limit)).all()
    return [_batch_row(row) for row in rows]


def latest_batch(engine: Engine) -> BatchRow | None:
    """Return the newest batch, one that is still loading only where there is no other; reads only.

    Args:
        engine: The ledger.

    Returns:
        The batch, or None in an empty ledger.
    """
    # What a dead producer left half loaded must not hide the batch that is being worked on.
    order = (Batch.state == BatchState.LOADING, Batch.id.desc())
    with read(engine) as connection:
        row = connection.execute(_batches().order_by(*order).limit(1)).one_or_none()
    return None if row is None else _batch_row(row)


def _batches() -> Select[Any]:
    items = select(func.coalesce(func.sum(Chunk.items), 0)).where(Chunk.batch_id == Batch.id).scalar_subquery()
    chunks = select(func.count()).where(Chunk.batch_id == Batch.id).scalar_subquery()
    return select(
        Batch.id,
        Batch.name,
        Batch.source,
        Batch.state,
        Batch.priority,
        Batch.model_digest,
        Batch.manifest_digest,
        func.coalesce(Batch.opened_at, Batch.created_at).label("created_at"),
        items.label("items"),
        chunks.label("chunks"),
    )


def _batch_row(row: Row[Any]) -> BatchRow:
    return BatchRow(
        id=row.id,
        name=row.name,
        source=row.source,
        state=row.state,
        priority=row.priority,
        model_digest=row.model_digest,
        manifest_digest=row.manifest_digest,
        created_at=row.created_at,
        items=int(row.items),
        chunks=int(row.chunks),
    )
