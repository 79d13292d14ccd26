"""What a person does to a batch: pause it, resume it, cancel it, retry what failed in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, Engine, Select, case, delete, func, select, update

from db.audit import append_entry
from db.errors import UnknownBatch, WrongBatchState
from db.session import write
from db.tables import Batch, BatchState, Chunk, ChunkState, Drift, Item, ItemState


def pause_batch(engine: Engine, batch_id: int, actor: str) -> bool:
    """Let no worker claim another chunk of a batch. Idempotent; its own transaction; audited.

    Chunks that are leased already are finished.

    Args:
        engine: The ledger.
        batch_id: An open batch.
        actor: Who asks.

    Returns:
        False where it was paused before.

    Raises:
        UnknownBatch: If it is not there.
        WrongBatchState: If it is loading or cancelled.
    """
    return _change_state(engine, batch_id, actor, frozenset({BatchState.OPEN}), BatchState.PAUSED)


def resume_batch(engine: Engine, batch_id: int, actor: str) -> bool:
    """Open a paused or cancelled batch again. Idempotent; its own transaction; audited.

    Args:
        engine: The ledger.
        batch_id: A paused or cancelled batch.
        actor: Who asks.

    Returns:
        False where it was open before.

    Raises:
        UnknownBatch: If it is not there.
        WrongBatchState: If it is loading, or half purged.
    """
    closed = frozenset({BatchState.PAUSED, BatchState.CANCELLED})
    return _change_state(engine, batch_id, actor, closed, BatchState.OPEN)


def cancel_batch(engine: Engine, batch_id: int, actor: str) -> bool:
    """Stop a batch; workers that hold its chunks write nothing more. Idempotent; its own transaction; audited.

    Its open items stay open.

    Args:
        engine: The ledger.
        batch_id: An open or paused batch.
        actor: Who asks.

    Returns:
        False where it was cancelled before.

    Raises:
        UnknownBatch: If it is not there.
        WrongBatchState: If it is loading.
    """
    return _change_state(engine, batch_id, actor, frozenset({BatchState.OPEN, BatchState.PAUSED}), BatchState.CANCELLED)


#: Chunks changed in one statement.
_MANY = 500

#: Begins the manifest digest of a batch that a purge has begun to erase, in place of its archive's.
HALF_PURGED: Final = "purged batch "

#: Audit action of each state that a person can give a batch.
_ACTIONS = {BatchState.PAUSED: "pause_batch", BatchState.OPEN: "resume_batch", BatchState.CANCELLED: "cancel_batch"}


def _change_state(
    engine: Engine, batch_id: int, actor: str, from_states: frozenset[BatchState], to_state: BatchState
) -> bool:
    with write(engine) as connection:
        # Waits for claims in flight and holds back new ones: see claim_chunk.
        state = connection.execute(lock_state(batch_id)).scalar()
        if state == to_state:
            return False
        if state not in from_states or _is_half_purged(connection, batch_id):
            raise refusal(connection, batch_id, f"cannot become {to_state}")
        connection.execute(update(Batch).where(Batch.id == batch_id).values(state=to_state))
        if to_state is BatchState.CANCELLED:
            _fence_out(connection, batch_id)
        append_entry(connection, actor, _ACTIONS[to_state], f"batch {batch_id}")
        return True


def lock_state(batch_id: int) -> Select[BatchState]:
    """Make the statement that reads a batch's state and keeps it, and claims, as they are until the transaction ends.

    Args:
        batch_id: The batch.

    Returns:
        A SELECT; it gives no row where the batch is not there.
    """
    # NO KEY UPDATE holds back the claims' SHARE, and not the KEY SHARE by which PostgreSQL checks a chunk's foreign key
    # whenever a worker updates it twice: that worker holds the chunk, which would be waited for in turn.
    return select(Batch.state).where(Batch.id == batch_id).with_for_update(key_share=True)


def _fence_out(connection: Connection, batch_id: int) -> None:
    # Raising the fence makes every later write of the present holders a LeaseLost; it is no crash of theirs.
    running = update(Chunk).where(Chunk.batch_id == batch_id, Chunk.state == ChunkState.RUNNING)
    connection.execute(
        running.values(
            state=ChunkState.OPEN, attempt=Chunk.attempt + 1, lease_until=None, worker=None, suspect_item_id=None
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What became of a batch's rejected and quarantined items."""

    #: Items that are open again.
    reopened: int
    #: Items left as they are because a worker holds their chunk; once it is done they can be retried.
    running: int
    #: Rows that name no file of the archive: the archive has to be read again to find it.
    without_file: int


def retry_batch(engine: Engine, batch_id: int, actor: str, *, reason: str | None = None) -> Retried:
    """Open a batch's rejected and quarantined items again. Idempotent; its own transaction; audited.

    Verdicts stay: only a success blocks a rerun. A quarantined item loses its marks, but its chunk stays suspect, so
    that it is opened alone. A paused or cancelled batch stays so.

    Args:
        engine: The ledger.
        batch_id: A batch that was loaded to its end.
        actor: Who asks.
        reason: Only items with this reason code; None takes all.

    Returns:
        How many items are open again, and how many are not and why.

    Raises:
        UnknownBatch: If it is not there.
        WrongBatchState: If it is loading, or half purged.
    """
    failed = [Item.batch_id == batch_id, Item.state.in_((ItemState.REJECTED, ItemState.QUARANTINED))]
    if reason is not None:
        failed.append(Item.reason == reason)
    with write(engine) as connection:
        # Holds back claims: see claim_chunk. Chunks that run already may end meanwhile, hence their locks.
        state = connection.execute(lock_state(batch_id)).scalar()
        if state is None or state == BatchState.LOADING or _is_half_purged(connection, batch_id):
            raise refusal(connection, batch_id, "cannot be retried; submit its archive again")
        affected = select(Item.chunk_id).where(*failed)
        locked = select(Chunk.id, Chunk.state).where(Chunk.id.in_(affected)).order_by(Chunk.id).with_for_update()
        chunks = dict(connection.execute(locked).all())
        # Chunks in which an item fails only now are not locked, and must not be touched: two that lock chunks in
        # different orders wait for each other.
        ended = [chunk for chunk, its_state in chunks.items() if its_state is not ChunkState.RUNNING]
        reopened = sum(
            _reopen(connection, ended[start : start + _MANY], failed) for start in range(0, len(ended), _MANY)
        )
        if reopened:
            append_entry(connection, actor, "retry_batch", f"batch {batch_id}")
            # Measured again once it is finished; what later batches are compared with stays.
            connection.execute(delete(Drift).where(Drift.batch_id == batch_id, ~Drift.accepted))
        running = [chunk for chunk, its_state in chunks.items() if its_state is ChunkState.RUNNING]
        left = sum(
            _count(connection, *failed, Item.path.is_not(None), Item.chunk_id.in_(running[start : start + _MANY]))
            for start in range(0, len(running), _MANY)
        )
        without_file = _count(connection, *failed, Item.path.is_(None))
        return Retried(reopened=reopened, running=left, without_file=without_file)


def _count(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    return connection.execute(select(func.count()).select_from(Item).where(*conditions)).scalar_one()


def _reopen(connection: Connection, chunks: Sequence[int], failed: Sequence[ColumnElement[bool]]) -> int:
    opened = update(Item).where(*failed, Item.path.is_not(None), Item.chunk_id.in_(chunks))
    count = connection.execute(opened.values(state=ItemState.OPEN, reason=None, marks=0, image_digest=None)).rowcount

    def items(state: ItemState) -> ColumnElement[int]:
        mine = select(func.count()).select_from(Item).where(Item.chunk_id == Chunk.id, Item.state == state)
        return mine.scalar_subquery()

    still_open = items(ItemState.OPEN)
    connection.execute(
        update(Chunk)
        .where(Chunk.id.in_(chunks))
        .values(
            open_count=still_open,
            rejected_count=items(ItemState.REJECTED),
            quarantined_count=items(ItemState.QUARANTINED),
            state=case((still_open > 0, ChunkState.OPEN), else_=Chunk.state),
            rung_at=None,
        )
    )
    return count


def refusal(connection: Connection, batch_id: int, what: str) -> UnknownBatch | WrongBatchState:
    """Make the error that says why a batch was not changed, inside the caller's transaction.

    Args:
        connection: The caller's connection.
        batch_id: The batch.
        what: What cannot be done with it, after "and".

    Returns:
        The error to raise.
    """
    state = connection.execute(select(Batch.state).where(Batch.id == batch_id)).scalar()
    if state is None:
        return UnknownBatch(batch_id)
    stands = "half purged" if _is_half_purged(connection, batch_id) else state.value
    return WrongBatchState(f"Batch {batch_id} is {stands} and {what}.")


def _is_half_purged(connection: Connection, batch_id: int) -> bool:
    begun = select(Batch.id).where(Batch.id == batch_id, Batch.manifest_digest.startswith(HALF_PURGED))
    return connection.execute(begun).one_or_none() is not None
