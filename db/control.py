"""What a person does to a running batch: pause it, resume it, cancel it."""

from sqlalchemy import Connection, Engine, select, update

from db.audit import append_entry
from db.errors import UnknownBatch, WrongBatchState
from db.session import write
from db.tables import Batch, BatchState, Chunk, ChunkState


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
