"""Chunks: keeping the lease of one that was claimed, recording outcomes behind the fence, giving it back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, bindparam, select, update

from db.claims import KILLS_WORKER, QUARANTINE_MARKS, Claim, ClaimedItem, claim_chunk, claim_next
from db.clock import clock
from db.counts import settle_chunk
from db.errors import LeaseLost, MissingResult, ModelMismatch, UnknownItem
from db.feed import RungChunk, drop_feeder_lease, open_chunks, ring_chunks, take_feeder_lease
from db.results import ResultRow, insert_results, referred_by_input
from db.session import write
from db.tables import Batch, Chunk, ChunkState, Item, ItemState

__all__ = [
    "KILLS_WORKER",
    "QUARANTINE_MARKS",
    "Claim",
    "ClaimedItem",
    "Rejected",
    "RungChunk",
    "Scored",
    "claim_chunk",
    "claim_next",
    "drop_feeder_lease",
    "extend_lease",
    "mark_suspect",
    "open_chunks",
    "record_results",
    "release_chunk",
    "ring_chunks",
    "take_feeder_lease",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An item with a verdict."""

    item_id: int
    #: sha256 of the file's bytes.
    image_digest: str
    #: sha256 of the bytes and the metadata that the model saw.
    input_digest: str
    #: None where the ledger has a result of this input and model already.
    result: ResultRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An item that cannot be scored."""

    item_id: int
    #: A code, never free text.
    reason: str
    image_digest: str | None = None


def extend_lease(engine: Engine, chunk_id: int, attempt: int, *, lease_seconds: float) -> None:
    """Extend the caller's lease, counted from now. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        chunk_id: The chunk.
        attempt: The claim's attempt.
        lease_seconds: How long from now.

    Raises:
        LeaseLost: If another attempt owns the chunk, it has ended, or its batch was cancelled.
    """
    with write(engine) as connection:
        kept = update(Chunk).where(_fence(chunk_id, attempt)).values(lease_until=clock() + lease_seconds)
        if connection.execute(kept).rowcount == 0:
            raise _lost(chunk_id, attempt)


def record_results(
    engine: Engine, chunk_id: int, attempt: int, *, model_digest: str, outcomes: Sequence[Scored | Rejected]
) -> int:
    """Record outcomes of any part of a chunk's open items. Idempotent; its own transaction, all or nothing.

    Items that are not open any more, or not of this chunk, are left as they are. Whether an item is done or referred
    is read from the result that is stored, which may be another worker's.

    Args:
        engine: The ledger.
        chunk_id: The chunk.
        attempt: The claim's attempt.
        model_digest: The model that gave the verdicts.
        outcomes: What became of the items.

    Returns:
        How many items of the chunk are still open; with 0 the chunk has ended.

    Raises:
        LeaseLost: If another attempt owns the chunk, it has ended, or its batch was cancelled.
        ModelMismatch: If the batch is pinned to another model.
        MissingResult: If a verdict without a result row is not stored.
    """
    with write(engine) as connection:
        # The fence comes first. It also locks the chunk's row, which everyone who changes its items takes first.
        pinned = select(Batch.model_digest).where(Batch.id == Chunk.batch_id).scalar_subquery()
        fenced = update(Chunk).where(_fence(chunk_id, attempt)).values(recorded_at=clock())
        row = connection.execute(fenced.returning(Chunk.suspect_item_id, pinned.label("model_digest"))).one_or_none()
        if row is None:
            raise _lost(chunk_id, attempt)
        _check_model(outcomes, model_digest, row.model_digest)
        recorded = _record_items(connection, chunk_id, model_digest, outcomes)
        if row.suspect_item_id in recorded:
            connection.execute(update(Chunk).where(Chunk.id == chunk_id).values(suspect_item_id=None))
        return settle_chunk(connection, chunk_id)


def _check_model(outcomes: Sequence[Scored | Rejected], model_digest: str, pinned: str) -> None:
    results = (one.result for one in outcomes if isinstance(one, Scored) and one.result is not None)
    if model_digest != pinned or any(result.model_digest != pinned for result in results):
        raise ModelMismatch("The batch is pinned to another model than the one that gave these verdicts.")


def _record_items(
    connection: Connection, chunk_id: int, model_digest: str, outcomes: Sequence[Scored | Rejected]
) -> set[int]:
    still_open = select(Item.id).where(Item.chunk_id == chunk_id, Item.state == ItemState.OPEN)
    open_ids = set(connection.execute(still_open).scalars())
    # The last word on an item counts, should a caller name it twice.
    mine = {outcome.item_id: outcome for outcome in outcomes if outcome.item_id in open_ids}
    scored = [outcome for outcome in mine.values() if isinstance(outcome, Scored)]
    insert_results(connection, [outcome.result for outcome in scored if outcome.result is not None])
    referred = referred_by_input(connection, model_digest, {outcome.input_digest for outcome in scored})
    rows = [_outcome_values(mine[item_id], referred) for item_id in sorted(mine)]
    if rows:
        changed = update(Item).where(Item.id == bindparam("item"))
        connection.execute(changed, rows)
    return set(mine)


def _outcome_values(outcome: Scored | Rejected, referred: Mapping[str, bool]) -> dict[str, Any]:
    values: dict[str, Any] = {"item": outcome.item_id, "image_digest": outcome.image_digest}
    if isinstance(outcome, Rejected):
        return values | {"state": ItemState.REJECTED, "reason": outcome.reason, "input_digest": None}
    if outcome.input_digest not in referred:
        raise MissingResult(f"Item {outcome.item_id} has no stored result.")
    state = ItemState.REFERRED if referred[outcome.input_digest] else ItemState.DONE
    return values | {"state": state, "reason": None, "input_digest": outcome.input_digest}


def release_chunk(engine: Engine, chunk_id: int, attempt: int, *, quiet: bool = False) -> None:
    """Give a chunk back before the lease expires, with no crash counted. Idempotent; its own transaction.

    A lease that is lost already is nobody's to give back: then nothing happens.

    Args:
        engine: The ledger.
        chunk_id: The chunk.
        attempt: The claim's attempt.
        quiet: Let the feeder wait its quiet time before it rings again (the archive is away, say);
            otherwise it rings at once.
    """
    with write(engine) as connection:
        given = update(Chunk).where(_fence(chunk_id, attempt))
        connection.execute(
            given.values(
                state=ChunkState.OPEN,
                lease_until=None,
                worker=None,
                suspect_item_id=None,
                rung_at=clock() if quiet else None,
            )
        )


def mark_suspect(engine: Engine, chunk_id: int, attempt: int, item_id: int) -> None:
    """Note which item is about to be opened, in place of the one before. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        chunk_id: The chunk.
        attempt: The claim's attempt.
        item_id: An open item of the chunk.

    Raises:
        LeaseLost: If another attempt owns the chunk, it has ended, or its batch was cancelled.
        UnknownItem: If the item is no open item of the chunk.
    """
    mine = select(Item.id).where(Item.id == item_id, Item.chunk_id == chunk_id, Item.state == ItemState.OPEN)
    with write(engine) as connection:
        marked = update(Chunk).where(_fence(chunk_id, attempt)).values(suspect_item_id=item_id)
        if connection.execute(marked).rowcount == 0:
            raise _lost(chunk_id, attempt)
        if connection.execute(mine).one_or_none() is None:
            raise UnknownItem(f"Item {item_id} is no open item of chunk {chunk_id}.")


def _fence(chunk_id: int, attempt: int) -> ColumnElement[bool]:
    # Cancelling a batch raises the attempt of its running chunks, so the fence needs no look at the batch.
    return and_(Chunk.id == chunk_id, Chunk.attempt == attempt, Chunk.state == ChunkState.RUNNING)


def _lost(chunk_id: int, attempt: int) -> LeaseLost:
    return LeaseLost(f"Attempt {attempt} does not hold chunk {chunk_id} any more.")
