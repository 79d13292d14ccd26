"""Counts: how many items of a batch have which outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Engine, func, select

from db.clock import clock
from db.errors import UnknownBatch
from db.session import read
from db.tables import Batch, BatchState, Chunk, Item


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
