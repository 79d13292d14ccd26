"""Counts: how many items of a batch, or of a chunk, have which outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, case, func, select, update

from db.clock import clock
from db.errors import UnknownBatch
from db.session import read
from db.tables import Batch, BatchState, Chunk, ChunkState, Item, ItemState


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How a batch stands; `found` is the sum of the five outcomes."""

    found: int
    open: int
    done: int
    referred: int
    rejected: int
    quarantined: int
    #: From opening to the last verdict, or to now while it is being worked on.
    seconds: float
    #: How many items were rejected or quarantined for which reason code.
    reasons: Mapping[str, int] = field(default_factory=dict)


def count_items(engine: Engine, batch_id: int) -> Counts:
    """Count a batch's items by outcome; reads only.

    Sums the chunks' counters and looks only at items that have a reason, so ten million items are counted as
    quickly as their forty thousand chunks.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        The counts of one moment.

    Raises:
        UnknownBatch: If it is not there.
    """
    begun = func.coalesce(Batch.opened_at, Batch.created_at)
    batch = select(Batch.state, begun.label("begun"), clock().label("now")).where(Batch.id == batch_id)
    columns = (
        Chunk.items,
        Chunk.open_count,
        Chunk.done_count,
        Chunk.referred_count,
        Chunk.rejected_count,
        Chunk.quarantined_count,
    )
    sums = [func.coalesce(func.sum(column), 0) for column in columns]
    chunks = select(func.max(Chunk.recorded_at), *sums).where(Chunk.batch_id == batch_id)
    reasons = select(Item.reason, func.count()).where(Item.batch_id == batch_id, Item.reason.is_not(None))
    with read(engine) as connection:
        row = connection.execute(batch).one_or_none()
        if row is None:
            raise UnknownBatch(batch_id)
        last, *counted = connection.execute(chunks).one()
        why = {str(reason): int(n) for reason, n in connection.execute(reasons.group_by(Item.reason))}
    found, still_open, done, referred, rejected, quarantined = (int(count) for count in counted)
    working = still_open > 0 and row.state != BatchState.CANCELLED
    end = row.now if working else last
    return Counts(
        found=found,
        open=still_open,
        done=done,
        referred=referred,
        rejected=rejected,
        quarantined=quarantined,
        # An archive whose every row is rejected at submit is finished before it opens.
        seconds=max(0.0, (end or row.begun) - row.begun),
        reasons=why,
    )


def settle_chunk(connection: Connection, chunk_id: int, *, erased: int = 0) -> int:
    """Count a chunk's items anew and end it where none is open, inside the caller's transaction.

    Args:
        connection: The caller's connection, which has changed the chunk's row before or holds back everyone else.
        chunk_id: The chunk.
        erased: Items that were taken out of it.

    Returns:
        How many items are still open.
    """
    # Counted from the items themselves under the chunk's lock: whatever was changed how often, the sum stays true.
    states = select(Item.state, func.count()).where(Item.chunk_id == chunk_id).group_by(Item.state)
    counts = dict(connection.execute(states).all())
    still_open = counts.get(ItemState.OPEN, 0)
    values: dict[str, Any] = {
        "open_count": still_open,
        "done_count": counts.get(ItemState.DONE, 0),
        "referred_count": counts.get(ItemState.REFERRED, 0),
        "rejected_count": counts.get(ItemState.REJECTED, 0),
        "quarantined_count": counts.get(ItemState.QUARANTINED, 0),
    }
    if erased:
        values["items"] = Chunk.items - erased
    if still_open == 0:
        # One that had ended before ended then, whatever is erased of it now.
        ended = case((Chunk.state == ChunkState.DONE, Chunk.recorded_at), else_=clock())
        values |= {"state": ChunkState.DONE, "lease_until": None, "suspect_item_id": None, "recorded_at": ended}
    connection.execute(update(Chunk).where(Chunk.id == chunk_id).values(values))
    return still_open
