"""Who is alive and what waits: small questions of workers, feeders and health checks; all of them read only."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, exists, func, select

from db.clock import clock
from db.feed import FEEDER
from db.session import read
from db.tables import Batch, BatchState, Chunk, ChunkState, Lease, RunState, TrainingRun


def is_genuine(engine: Engine, *, chunk: int, batch: int, model: str) -> bool:
    """Say whether the ids of a message belong together; a forged one must not even raise a chunk's attempt.

    Args:
        engine: The ledger.
        chunk: The chunk's id.
        batch: The batch's id.
        model: Digest of a model.

    Returns:
        Whether there is such a chunk, of that batch, pinned to that model.
    """
    query = select(Chunk.batch_id, Batch.model_digest).join(Batch).where(Chunk.id == chunk)
    with read(engine) as connection:
        row = connection.execute(query).one_or_none()
    return row is not None and (row.batch_id, row.model_digest) == (batch, model)


def running_workers(engine: Engine) -> int:
    """Count the workers that hold a live lease.

    Args:
        engine: The ledger.

    Returns:
        How many.
    """
    with read(engine) as connection:
        return count_running_workers(connection)


def count_running_workers(connection: Connection) -> int:
    """Count the same inside the caller's transaction."""
    return connection.execute(select(func.count(Chunk.worker.distinct())).where(*_held())).scalar_one()


def feeder_is_alive(engine: Engine) -> bool:
    """Say whether some feeder holds the right to feed.

    Args:
        engine: The ledger.

    Returns:
        Whether one does.
    """
    with read(engine) as connection:
        return has_feeder(connection)


def has_feeder(connection: Connection) -> bool:
    """Say the same inside the caller's transaction."""
    return _is_there(connection, select(Lease.name).where(Lease.name == FEEDER, Lease.lease_until > clock()))


def lease_is_alive(engine: Engine, worker: str) -> bool:
    """Say whether a worker holds a chunk whose lease it keeps up.

    Args:
        engine: The ledger.
        worker: What the ledger calls it.

    Returns:
        Whether it does.
    """
    with read(engine) as connection:
        return _is_there(connection, select(Chunk.id).where(Chunk.worker == worker, *_held()))


def run_is_alive(engine: Engine, seconds: float) -> bool:
    """Say whether the worker of a training run was heard of lately.

    Args:
        engine: The ledger.
        seconds: How lately.

    Returns:
        Whether it was; one run at a time is worked on.
    """
    lately = (TrainingRun.state == RunState.RUNNING, TrainingRun.heartbeat > clock() - seconds)
    with read(engine) as connection:
        return _is_there(connection, select(TrainingRun.id).where(*lately))


def work_waits(engine: Engine, seconds: float) -> bool:
    """Say whether chunks that may be begun have waited for long.

    Args:
        engine: The ledger.
        seconds: How long.

    Returns:
        Whether one has.
    """
    waiting = (
        select(Chunk.id)
        .join(Batch, Batch.id == Chunk.batch_id)
        .where(Batch.state == BatchState.OPEN, Chunk.state == ChunkState.OPEN, Batch.opened_at < clock() - seconds)
    )
    with read(engine) as connection:
        return _is_there(connection, waiting)


def _held() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Chunk.state == ChunkState.RUNNING, Chunk.lease_until > clock()


def _is_there(connection: Connection, rows: Select[Any]) -> bool:
    return bool(connection.execute(select(exists(rows))).scalar_one())
