"""Small questions to the ledger that only workers and feeders ask; all of them read only."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Select, exists, func, select

from db.clock import clock
from db.session import read
from db.tables import Batch, BatchState, Chunk, ChunkState, Lease, RunState, TrainingRun
from worker.contract import ClaimCheck
from worker.settings import WorkerSettings


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


def feeder_is_alive(engine: Engine) -> bool:
    """Say whether some feeder holds the right to feed.

    Args:
        engine: The ledger.

    Returns:
        Whether one does.
    """
    return _is_there(engine, select(Lease.name).where(Lease.name == "feeder", Lease.lease_until > clock()))


def lease_is_alive(engine: Engine, worker: str) -> bool:
    """Say whether a worker holds a chunk whose lease it keeps up.

    Args:
        engine: The ledger.
        worker: What the ledger calls it.

    Returns:
        Whether it does.
    """
    theirs = (Chunk.worker == worker, Chunk.state == ChunkState.RUNNING, Chunk.lease_until > clock())
    return _is_there(engine, select(Chunk.id).where(*theirs))


def run_is_alive(engine: Engine, seconds: float) -> bool:
    """Say whether the worker of a training run was heard of lately.

    Args:
        engine: The ledger.
        seconds: How lately.

    Returns:
        Whether it was; one run at a time is worked on.
    """
    lately = (TrainingRun.state == RunState.RUNNING, TrainingRun.heartbeat > clock() - seconds)
    return _is_there(engine, select(TrainingRun.id).where(*lately))


def work_waits(engine: Engine, settings: WorkerSettings, seconds: float) -> bool:
    """Say whether chunks that may be begun have waited for long.

    Args:
        engine: The ledger.
        settings: The window.
        seconds: How long.

    Returns:
        Whether one has.
    """
    if not settings.is_in_window(datetime.now(UTC)):
        return False
    waiting = (
        select(Chunk.id)
        .join(Batch, Batch.id == Chunk.batch_id)
        .where(Batch.state == BatchState.OPEN, Chunk.state == ChunkState.OPEN, Batch.opened_at < clock() - seconds)
    )
    return _is_there(engine, waiting)


def _is_there(engine: Engine, rows: Select[Any]) -> bool:
    with read(engine) as connection:
        return bool(connection.execute(select(exists(rows))).scalar_one())
