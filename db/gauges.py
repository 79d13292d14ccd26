"""Gauges: the state of the whole ledger in a few numbers, for monitoring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, func, select

from db.clock import clock
from db.liveness import count_running_workers, has_feeder
from db.session import read
from db.tables import Batch, BatchState, Chunk, ChunkState, ItemState, ModelState, ModelVersion, TrainingRun

#: Rates and latencies are those of the last so many seconds.
WINDOW_SECONDS: Final = 300
#: Latencies of so many chunks at most, the newest ones.
_MOST_CHUNKS: Final = 5_000

_OUTCOMES: Final = {
    ItemState.OPEN: Chunk.open_count,
    ItemState.DONE: Chunk.done_count,
    ItemState.REFERRED: Chunk.referred_count,
    ItemState.REJECTED: Chunk.rejected_count,
    ItemState.QUARANTINED: Chunk.quarantined_count,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """The state of a ledger at one moment; nothing in it speaks of a patient."""

    #: Items by outcome, of every batch that is there.
    items: Mapping[str, int]
    #: Chunks by state, of the batches that are open.
    chunks: Mapping[str, int]
    batches: Mapping[str, int]
    runs: Mapping[str, int]
    #: Leases that ran out and were taken over, of every chunk that is there.
    expiries: int
    #: Leases that have run out and that nobody has taken over yet, of the batches that are open: what is paused waits
    #: for nobody.
    expired: int
    #: Items of chunks that got an outcome lately, each second.
    images_per_second: float
    #: From the message to the last outcome, seconds, ascending, of chunks that ended lately.
    latencies: Sequence[float]
    #: Workers that hold a live lease.
    working: int
    feeding: bool
    #: Digest of the active model.
    model: str | None


def read_gauges(engine: Engine) -> Gauges:
    """Read the state of the ledger; reads only. The chunks are walked once: a million items are a few thousand.

    Args:
        engine: The ledger.

    Returns:
        Its gauges.
    """
    with read(engine) as connection:
        return Gauges(
            items=_items(connection),
            chunks=_chunks(connection),
            batches=_by_state(connection, Batch),
            runs=_by_state(connection, TrainingRun),
            expiries=connection.execute(select(func.coalesce(func.sum(Chunk.crashes), 0))).scalar_one(),
            expired=_expired(connection),
            images_per_second=_rate(connection),
            latencies=_latencies(connection),
            working=count_running_workers(connection),
            feeding=has_feeder(connection),
            model=connection.execute(
                select(ModelVersion.digest).where(ModelVersion.state == ModelState.ACTIVE)
            ).scalar_one_or_none(),
        )


def _items(connection: Connection) -> dict[str, int]:
    sums = [func.coalesce(func.sum(column), 0) for column in _OUTCOMES.values()]
    row = connection.execute(select(*sums)).one()
    return {state.value: int(count) for state, count in zip(_OUTCOMES, row, strict=True)}


def _chunks(connection: Connection) -> dict[str, int]:
    query = (
        select(Chunk.state, func.count())
        .join(Batch, Batch.id == Chunk.batch_id)
        .where(Batch.state == BatchState.OPEN)
        .group_by(Chunk.state)
    )
    found = {state: int(count) for state, count in connection.execute(query)}
    return {state.value: found.get(state, 0) for state in ChunkState}


def _by_state(connection: Connection, table: type[Batch | TrainingRun]) -> dict[str, int]:
    query = select(table.state, func.count()).group_by(table.state)
    return {state.value: int(count) for state, count in connection.execute(query)}


def _expired(connection: Connection) -> int:
    query = (
        select(func.count())
        .join_from(Chunk, Batch, Batch.id == Chunk.batch_id)
        .where(Batch.state == BatchState.OPEN, Chunk.state == ChunkState.RUNNING, Chunk.lease_until <= clock())
    )
    return connection.execute(query).scalar_one()


def _rate(connection: Connection) -> float:
    ended = func.sum(Chunk.items - Chunk.open_count)
    lately = Chunk.recorded_at > clock() - WINDOW_SECONDS
    return float(connection.execute(select(ended).where(lately)).scalar_one() or 0) / WINDOW_SECONDS


def _latencies(connection: Connection) -> list[float]:
    lately = (Chunk.state == ChunkState.DONE, Chunk.recorded_at > clock() - WINDOW_SECONDS)
    query = (
        select(Chunk.recorded_at - Chunk.rung_at)
        .where(*lately, Chunk.rung_at <= Chunk.recorded_at)
        .order_by(Chunk.recorded_at.desc())
        .limit(_MOST_CHUNKS)
    )
    return sorted(seconds for (seconds,) in connection.execute(query) if seconds is not None)
