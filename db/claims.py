"""Claims: leasing a chunk, by its number or as the next of its batch."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Engine, Row, case, exists, or_, select, update

from db.clock import clock
from db.counts import settle_chunk
from db.feed import has_expired
from db.session import write
from db.tables import Batch, BatchState, Chunk, ChunkState, Item, ItemState

#: An item that was being opened while so many attempts died is quarantined.
QUARANTINE_MARKS = 3

#: Reason code of a quarantined item.
KILLS_WORKER = "kills_worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedItem:
    """One open item of a claimed chunk, with the metadata that the model sees."""

    item_id: int
    #: Relative to the archive's root.
    path: str
    #: Bytes, when it was submitted.
    size: int | None
    mtime_ns: int | None
    #: Years.
    age: float | None
    sex: str | None
    localization: str | None
    #: Attempts that died on it.
    marks: int
    #: Of a DICOM object with several frames: which one, from 1.
    frame: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A chunk that is leased to the caller."""

    chunk_id: int
    batch_id: int
    #: The fence: every later call about this chunk must name it.
    attempt: int
    #: Leases of this chunk that expired; from the first on, work one item at a time and mark it before opening it.
    crashes: int
    model_digest: str
    #: The archive's root, as it was submitted.
    source: str
    #: The items that are still open, by id.
    items: tuple[ClaimedItem, ...]


def claim_chunk(
    engine: Engine, chunk_id: int, *, worker: str, lease_seconds: float, least_priority: int | None = None
) -> Claim | None:
    """Lease a chunk, if it is there to be had. Not idempotent: each success is a new attempt; its own transaction.

    A lease that expired is taken over and counted as a crash. An item that was marked at that moment gets a mark of
    its own, and with the third it is quarantined here, which may end the chunk.

    Args:
        engine: The ledger.
        chunk_id: The chunk, as a message named it.
        worker: Who claims it.
        lease_seconds: How long the lease lasts unless it is extended.
        least_priority: Take nothing of a batch of a lower priority.

    Returns:
        The claim, or None where the chunk is unknown, finished or leased by a live worker, or its batch is not open.
    """
    with write(engine) as connection:
        of_chunk = Batch.id == select(Chunk.batch_id).where(Chunk.id == chunk_id).scalar_subquery()
        batch = _hold_batch(connection, of_chunk, least_priority)
        return None if batch is None else _claim(connection, batch, chunk_id, worker, lease_seconds)


def claim_next(
    engine: Engine, batch_id: int, *, worker: str, lease_seconds: float, least_priority: int | None = None
) -> Claim | None:
    """Lease the first chunk of a batch that waits, unless something more urgent does. As `claim_chunk` in all else.

    For a worker that comes to the end of a chunk, or was too late for another one: it need not wait for a message.

    Args:
        engine: The ledger.
        batch_id: The batch.
        worker: Who claims it.
        lease_seconds: How long the lease lasts unless it is extended.
        least_priority: Take nothing of a batch of a lower priority.

    Returns:
        The claim, or None where no chunk of the batch waits that never crashed, the batch is not open, a batch of a
        higher priority has one that waits, or any lease has expired.
    """
    with write(engine) as connection:
        batch = _hold_batch(connection, Batch.id == batch_id, least_priority)
        if batch is None or _is_urgent_waiting(connection, batch.priority):
            return None
        # One that crashed is worked on alone.
        waits = (Chunk.batch_id == batch_id, Chunk.state == ChunkState.OPEN, Chunk.crashes == 0)
        first = select(Chunk.id).where(*waits).order_by(Chunk.id).limit(1).with_for_update(skip_locked=True)
        chunk_id = connection.execute(first).scalar_one_or_none()
        return None if chunk_id is None else _claim(connection, batch, chunk_id, worker, lease_seconds)


def _hold_batch(
    connection: Connection, which: ColumnElement[bool], least_priority: int | None
) -> Row[int, BatchState, int, str, str] | None:
    # Shared by claims, exclusive to pause and cancel. Without it, READ COMMITTED would let a claim that began before a
    # pause succeed after it. Who locks both a batch and chunks of it locks the batch first.
    columns = (Batch.id, Batch.state, Batch.priority, Batch.model_digest, Batch.source)
    batch = connection.execute(select(*columns).where(which).with_for_update(read=True)).one_or_none()
    if batch is None or batch.state != BatchState.OPEN:
        return None
    return batch if least_priority is None or batch.priority >= least_priority else None


def _is_urgent_waiting(connection: Connection, priority: int) -> bool:
    lost = exists().where(Chunk.batch_id == Batch.id, has_expired(), Batch.state == BatchState.OPEN)
    waiting = exists().where(Chunk.batch_id == Batch.id, Chunk.state == ChunkState.OPEN)
    above = exists().where(Batch.state == BatchState.OPEN, Batch.priority > priority, waiting)
    return connection.execute(select(or_(lost, above))).scalar_one()


def _claim(
    connection: Connection,
    batch: Row[int, BatchState, int, str, str],
    chunk_id: int,
    worker: str,
    lease_seconds: float,
) -> Claim | None:
    claimed = _take_lease(connection, chunk_id, worker, lease_seconds)
    if claimed is None:
        return None
    if claimed.suspect_item_id is not None:
        _mark_killer(connection, chunk_id, claimed.suspect_item_id)
    items = _open_items(connection, chunk_id)
    if not items:
        return None
    return Claim(
        chunk_id=chunk_id,
        batch_id=batch.id,
        attempt=claimed.attempt,
        crashes=claimed.crashes,
        model_digest=batch.model_digest,
        source=batch.source,
        items=items,
    )


def _take_lease(
    connection: Connection, chunk_id: int, worker: str, lease_seconds: float
) -> Row[int, int, int | None] | None:
    taken = (
        update(Chunk)
        .where(Chunk.id == chunk_id, or_(Chunk.state == ChunkState.OPEN, has_expired()))
        .values(
            state=ChunkState.RUNNING,
            attempt=Chunk.attempt + 1,
            crashes=Chunk.crashes + case((Chunk.state == ChunkState.RUNNING, 1), else_=0),
            lease_until=clock() + lease_seconds,
            worker=worker,
        )
    )
    # The suspect is still the dead attempt's: it is cleared once it has been counted.
    returned = taken.returning(Chunk.attempt, Chunk.crashes, Chunk.suspect_item_id)
    return connection.execute(returned).one_or_none()


def _mark_killer(connection: Connection, chunk_id: int, item_id: int) -> None:
    suspect = (Item.id == item_id, Item.chunk_id == chunk_id, Item.state == ItemState.OPEN)
    connection.execute(update(Item).where(*suspect).values(marks=Item.marks + 1))
    fatal = update(Item).where(*suspect, Item.marks >= QUARANTINE_MARKS)
    connection.execute(fatal.values(state=ItemState.QUARANTINED, reason=KILLS_WORKER))
    connection.execute(update(Chunk).where(Chunk.id == chunk_id).values(suspect_item_id=None))
    settle_chunk(connection, chunk_id)


def _open_items(connection: Connection, chunk_id: int) -> tuple[ClaimedItem, ...]:
    columns = (Item.id.label("item_id"), Item.path, Item.size, Item.mtime_ns, Item.frame)
    rows = select(*columns, Item.age, Item.sex, Item.localization, Item.marks)
    still_open = rows.where(Item.chunk_id == chunk_id, Item.state == ItemState.OPEN).order_by(Item.id)
    return tuple(ClaimedItem(**row) for row in connection.execute(still_open).mappings())
