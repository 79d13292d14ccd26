"""What a person does to a batch: pause it, resume it, cancel it, retry what failed in it."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Engine, case, func, or_, select, update

from db.audit import append_entry
from db.errors import UnknownBatch, WrongBatchState
from db.session import write
from db.tables import Batch, BatchState, Chunk, ChunkState, Item, ItemState


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
        WrongBatchState: If it is loading.
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


#: Audit action of each state that a person can give a batch.
_ACTIONS = {BatchState.PAUSED: "pause_batch", BatchState.OPEN: "resume_batch", BatchState.CANCELLED: "cancel_batch"}


def _change_state(
    engine: Engine, batch_id: int, actor: str, from_states: frozenset[BatchState], to_state: BatchState
) -> bool:
    with write(engine) as connection:
        # Waits for claims in flight and holds back new ones: see claim_chunk.
        state = connection.execute(select(Batch.state).where(Batch.id == batch_id).with_for_update()).scalar()
        if state == to_state:
            return False
        if state not in from_states:
            raise refusal(connection, batch_id, f"cannot become {to_state}")
        connection.execute(update(Batch).where(Batch.id == batch_id).values(state=to_state))
        if to_state is BatchState.CANCELLED:
            _fence_out(connection, batch_id)
        append_entry(connection, actor, _ACTIONS[to_state], f"batch {batch_id}")
        return True


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
        WrongBatchState: If it is loading.
    """
    failed = [Item.batch_id == batch_id, Item.state.in_((ItemState.REJECTED, ItemState.QUARANTINED))]
    if reason is not None:
        failed.append(Item.reason == reason)
    with write(engine) as connection:
        # Holds back claims: see claim_chunk. Chunks that run already may end meanwhile, hence their locks.
        state = connection.execute(select(Batch.state).where(Batch.id == batch_id).with_for_update()).scalar()
        if state is None or state == BatchState.LOADING:
            raise refusal(connection, batch_id, "cannot be retried; submit its archive again")
        affected = select(Item.chunk_id).where(*failed)
        connection.execute(select(Chunk.id).where(Chunk.id.in_(affected)).order_by(Chunk.id).with_for_update())
        running = Item.chunk_id.in_(
            select(Chunk.id).where(Chunk.batch_id == batch_id, Chunk.state == ChunkState.RUNNING)
        )
        left = _count(connection, *failed, Item.path.is_not(None), running)
        without_file = _count(connection, *failed, Item.path.is_(None))
        opened = update(Item).where(*failed, Item.path.is_not(None), ~running)
        reopened = connection.execute(opened.values(state=ItemState.OPEN, reason=None, marks=0, image_digest=None))
        if reopened.rowcount:
            _recount(connection, batch_id)
            append_entry(connection, actor, "retry_batch", f"batch {batch_id}")
        return Retried(reopened=reopened.rowcount, running=left, without_file=without_file)


def _count(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    return connection.execute(select(func.count()).select_from(Item).where(*conditions)).scalar_one()


def _recount(connection: Connection, batch_id: int) -> None:
    def items(state: ItemState) -> ColumnElement[int]:
        mine = select(func.count()).select_from(Item).where(Item.chunk_id == Chunk.id, Item.state == state)
        return mine.scalar_subquery()

    # Only these chunks can have had an item opened; a running one's counters are its worker's to settle.
    failed = or_(Chunk.rejected_count > 0, Chunk.quarantined_count > 0)
    chosen = update(Chunk).where(Chunk.batch_id == batch_id, failed, Chunk.state != ChunkState.RUNNING)
    still_open = items(ItemState.OPEN)
    connection.execute(
        chosen.values(
            open_count=still_open,
            rejected_count=items(ItemState.REJECTED),
            quarantined_count=items(ItemState.QUARANTINED),
            state=case((still_open > 0, ChunkState.OPEN), else_=Chunk.state),
            rung_at=None,
        )
    )


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
        return UnknownBatch(f"There is no batch {batch_id}.")
    return WrongBatchState(f"Batch {batch_id} is {state.value} and {what}.")
