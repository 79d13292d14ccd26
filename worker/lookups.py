"""Small questions to the ledger that only workers and feeders ask; all of them read only."""

from sqlalchemy import Engine, func, select

from db.clock import clock
from db.session import read
from db.tables import Batch, Chunk, ChunkState
from worker.contract import ClaimCheck


def is_genuine(engine: Engine, check: ClaimCheck) -> bool:
    """Say whether the ids of a claim check belong together; a forged one must not even raise a chunk's attempt.

    Args:
        engine: The ledger.
        check: A payload of the right form.

    Returns:
        Whether there is such a chunk, of that batch, pinned to that model.
    """
    query = select(Chunk.batch_id, Batch.model_digest).join(Batch).where(Chunk.id == check.chunk)
    with read(engine) as connection:
        row = connection.execute(query).one_or_none()
    return row is not None and (row.batch_id, row.model_digest) == (check.batch, check.model)


def running_workers(engine: Engine) -> int:
    """Count the workers that hold a live lease.

    Args:
        engine: The ledger.

    Returns:
        How many.
    """
    live = (Chunk.state == ChunkState.RUNNING, Chunk.lease_until > clock())
    with read(engine) as connection:
        return connection.execute(select(func.count(Chunk.worker.distinct())).where(*live)).scalar_one()
