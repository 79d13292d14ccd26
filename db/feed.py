"""What the feeder asks of the ledger: which chunks to ring next, and whether it is its turn."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Engine, and_, case, delete, func, or_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite

from db.clock import clock
from db.session import read, write
from db.tables import Batch, BatchState, Chunk, ChunkState, Lease

#: The lease that the feeder holds which acts.
FEEDER: Final = "feeder"

#: An expired chunk has waited for a whole lease; should its ring be lost with Redis, it must not wait that long again.
_EXPIRED_QUIET = 1 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RungChunk:
    """A chunk to ring for; nothing in it speaks of a patient."""

    batch_id: int
    chunk_id: int
    #: Open items.
    items: int
    model_digest: str
    #: Its worker was not heard of in time: it has waited for a whole lease already.
    expired: bool


def has_expired() -> ColumnElement[bool]:
    """State the condition that a chunk's worker was not heard of in time, so that another one may take it over."""
    return and_(Chunk.state == ChunkState.RUNNING, Chunk.lease_until < clock())


def ring_chunks(
    engine: Engine,
    *,
    limit: int,
    quiet_seconds: float = 15,
    expired_only: bool = False,
    least_priority: int | None = None,
) -> list[RungChunk]:
    """Choose the chunks to ring next and note that they are rung. Not idempotent; its own transaction.

    Expired leases come first, then batches of higher priority, then older chunks; only of batches that are open, and
    none that was rung a moment ago. Several feeders never get the same chunk.

    Args:
        engine: The ledger.
        limit: At most so many.
        quiet_seconds: Leave alone what was rung within so many seconds; for an expired lease, a third of that.
        expired_only: Leave alone what no worker has begun.
        least_priority: Leave alone batches of a lower priority.

    Returns:
        The chunks, most urgent first.
    """
    if limit <= 0:
        return []
    expired = has_expired()
    wait = case((expired, quiet_seconds * _EXPIRED_QUIET), else_=quiet_seconds)
    quiet = or_(Chunk.rung_at.is_(None), Chunk.rung_at < clock() - wait)
    ready = expired if expired_only else or_(Chunk.state == ChunkState.OPEN, expired)
    urgent = true() if least_priority is None else Batch.priority >= least_priority
    due = (
        select(Chunk.batch_id, Chunk.id, Chunk.open_count, Chunk.state, Batch.model_digest)
        .join(Batch, Batch.id == Chunk.batch_id)
        .where(Batch.state == BatchState.OPEN, ready, quiet, urgent)
        .order_by(case((Chunk.state == ChunkState.RUNNING, 0), else_=1), Batch.priority.desc(), Chunk.id)
        .limit(limit)
        .with_for_update(of=Chunk, skip_locked=True)
    )
    with write(engine) as connection:
        rows = connection.execute(due).all()
        if rows:
            rung = update(Chunk).where(Chunk.id.in_([row.id for row in rows]))
            connection.execute(rung.values(rung_at=clock()))
    return [
        RungChunk(
            batch_id=row.batch_id,
            chunk_id=row.id,
            items=row.open_count,
            model_digest=row.model_digest,
            expired=row.state == ChunkState.RUNNING,
        )
        for row in rows
    ]


def open_chunks(engine: Engine) -> int:
    """Count the chunks of open batches that are not done; reads only.

    Args:
        engine: The ledger.

    Returns:
        Waiting and leased chunks together.
    """
    unfinished = (
        select(func.count())
        .select_from(Chunk)
        .join(Batch, Batch.id == Chunk.batch_id)
        .where(Batch.state == BatchState.OPEN, Chunk.state.in_((ChunkState.OPEN, ChunkState.RUNNING)))
    )
    with read(engine) as connection:
        return connection.execute(unfinished).scalar_one()


def take_feeder_lease(engine: Engine, *, holder: str, lease_seconds: float) -> bool:
    """Take or keep the right to feed. Idempotent for its holder; its own transaction.

    Args:
        engine: The ledger.
        holder: Who asks; unique among all feeders.
        lease_seconds: How long the right lasts unless it is taken again.

    Returns:
        Whether the caller may feed.
    """
    until = clock() + lease_seconds
    mine = update(Lease).where(Lease.name == FEEDER, or_(Lease.holder == holder, Lease.lease_until < clock()))
    with write(engine) as connection:
        if connection.execute(mine.values(holder=holder, lease_until=until)).rowcount:
            return True
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        first = dialect.insert(Lease).values(name=FEEDER, holder=holder, lease_until=until)
        return connection.execute(first.on_conflict_do_nothing().returning(Lease.name)).first() is not None


def drop_feeder_lease(engine: Engine, *, holder: str) -> None:
    """Give the right to feed back, if the caller has it. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        holder: Who gives it back.
    """
    with write(engine) as connection:
        connection.execute(delete(Lease).where(Lease.name == FEEDER, Lease.holder == holder))
