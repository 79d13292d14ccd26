"""Summaries: every batch with its counts, a row each; reads only."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, func, select

from db.session import read
from db.tables import Batch, BatchState, Chunk

#: Counters of a chunk under the names of `BatchSummary`.
_COUNTERS: Final = {
    "found": Chunk.items,
    "open": Chunk.open_count,
    "done": Chunk.done_count,
    "referred": Chunk.referred_count,
    "rejected": Chunk.rejected_count,
    "quarantined": Chunk.quarantined_count,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """A batch in a line; `found` is the sum of the five outcomes."""

    id: int
    name: str
    state: BatchState
    found: int
    open: int
    done: int
    referred: int
    rejected: int
    quarantined: int


def list_summaries(engine: Engine) -> list[BatchSummary]:
    """Count every batch at one moment; reads only. The chunks are walked once, the items never.

    Args:
        engine: The ledger.

    Returns:
        Every batch, those that are loading included, the newest last.
    """
    sums = [func.coalesce(func.sum(counter), 0).label(name) for name, counter in _COUNTERS.items()]
    query = (
        select(Batch.id, Batch.name, Batch.state, *sums)
        .outerjoin(Chunk, Chunk.batch_id == Batch.id)
        .group_by(Batch.id, Batch.name, Batch.state)
        .order_by(Batch.id)
    )
    with read(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return [
        BatchSummary(id=row["id"], name=row["name"], state=row["state"], **{name: int(row[name]) for name in _COUNTERS})
        for row in rows
    ]
