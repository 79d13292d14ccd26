"""Erasing: what the ledger holds of one patient, and batches that have outlived their retention."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import CompoundSelect, Connection, Engine, Select, delete, exists, func, select, text, update

from db.audit import append_entry
from db.batches import delete_chunks, delete_items
from db.clock import clock
from db.control import HALF_PURGED, lock_state
from db.counts import settle_chunk
from db.pictures import thumb_path
from db.session import empty_write_ahead_log, read, write
from db.tables import Batch, BatchState, Chunk, ChunkState, Drift, Item, Result

#: Deletes a file of the artifact store.
RemoveFile = Callable[[str], object]

#: Chunks erased in one transaction of a purge, so that screening goes on beside it.
_CHUNKS_AT_ONCE: Final = 50
#: Files deleted between two words to the database: of object storage one may take a tenth of a second.
_FILES_AT_ONCE: Final = 100
_SECONDS_A_DAY: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What is not in the ledger any more."""

    batches: tuple[int, ...]
    items: int
    #: Verdicts that no item is left for.
    results: int


def forget_patient(engine: Engine, patient_ref: str, actor: str, *, remove_file: RemoveFile) -> Erased:
    """Erase every item of a patient, whatever its state, and its verdicts. Idempotent; its own transaction; audited.

    The counts of its batches shrink by what is erased, and the audit trail says by how much, without the patient's
    reference. A worker that holds such an item records nothing for it. Not reached are backups, files that were
    exported, and what a PostgreSQL server keeps of dead rows until it vacuums.

    Args:
        engine: The ledger.
        patient_ref: The patient, letter by letter as the archive's table has it.
        actor: Who asks.
        remove_file: Deletes what a verdict had drawn, by its path in the artifact store. It is called before anything
            is final: a file that cannot be deleted leaves the ledger as it is.

    Returns:
        What was erased; nothing where the patient is unknown.
    """
    theirs = Item.patient_ref == patient_ref
    with write(engine) as connection:
        _hold_back_workers(connection)
        per_chunk = (
            select(Item.batch_id, Item.chunk_id, func.count()).where(theirs).group_by(Item.batch_id, Item.chunk_id)
        )
        touched = connection.execute(per_chunk.order_by(Item.batch_id, Item.chunk_id)).all()
        batches = tuple(dict.fromkeys(batch for batch, _, _ in touched))
        items = delete_items(connection, theirs)
        for _, chunk, count in touched:
            settle_chunk(connection, chunk, erased=count)
        if items:
            _remove_drawn(connection, remove_file)
        results = _erase_orphans(connection) if items else 0
        if items:
            subject = f"batch {', '.join(map(str, batches))}"
            append_entry(connection, actor, "forget_patient", subject, f"{items} items, {results} results")
    if items:
        empty_write_ahead_log(engine)
    return Erased(batches=batches, items=items, results=results)


def find_outlived(engine: Engine, older_than_days: float, *, unfinished: bool = False) -> list[int]:
    """List the batches that were submitted longer ago; reads only.

    Args:
        engine: The ledger.
        older_than_days: Age in days.
        unfinished: Those that are still worked on, open or paused with open items, instead of those that are not.

    Returns:
        Their ids.
    """
    with read(engine) as connection:
        return list(connection.execute(_outlived(older_than_days, unfinished=unfinished)).scalars())


def purge_batches(engine: Engine, older_than_days: float, actor: str) -> Erased:
    """Erase batches that were submitted longer ago. Idempotent; many transactions; audited.

    A batch that is still worked on is left: cancel it first. Killed half-way, it leaves a cancelled batch with fewer
    chunks, which stands for its archive no more, and the next call goes on. What its verdicts had drawn is left to
    `producer.erasing.sweep_pictures`: hundreds of thousands of files take too long for a transaction that holds back
    all workers.

    Args:
        engine: The ledger.
        older_than_days: Age in days.
        actor: Who asks.

    Returns:
        What was erased.
    """
    erased: list[int] = []
    items = 0
    for batch_id in find_outlived(engine, older_than_days):
        if _close(engine, batch_id, older_than_days):
            items += sum(_erase_chunks(engine, batch_id))
            erased.append(batch_id)
    if not erased:
        return Erased(batches=(), items=0, results=0)
    with write(engine) as connection:
        _hold_back_workers(connection)
        connection.execute(delete(Drift).where(Drift.batch_id.in_(erased)))
        connection.execute(delete(Batch).where(Batch.id.in_(erased), Batch.state == BatchState.CANCELLED))
        results = _erase_orphans(connection)
        subject = f"batch {', '.join(map(str, erased))}"
        append_entry(connection, actor, "purge_batches", subject, f"{items} items, {results} results")
    empty_write_ahead_log(engine)
    return Erased(batches=tuple(erased), items=items, results=results)


def _outlived(older_than_days: float, *, unfinished: bool) -> Select[int]:
    left = exists().where(Chunk.batch_id == Batch.id, Chunk.state != ChunkState.DONE)
    worked_on = Batch.state.in_((BatchState.OPEN, BatchState.PAUSED)) & left
    old = Batch.opened_at < clock() - older_than_days * _SECONDS_A_DAY
    loaded = Batch.state != BatchState.LOADING
    return select(Batch.id).where(loaded, old, worked_on if unfinished else ~worked_on).order_by(Batch.id)


def _close(engine: Engine, batch_id: int, older_than_days: float) -> bool:
    # A retry may have opened it again since it was listed.
    still = _outlived(older_than_days, unfinished=False).where(Batch.id == batch_id)
    with write(engine) as connection:
        connection.execute(lock_state(batch_id))
        if connection.execute(still).scalar_one_or_none() is None:
            return False
        # From here on its counts are not its archive's: whoever submits that again is to get a batch of its own.
        closed = {"state": BatchState.CANCELLED, "manifest_digest": f"{HALF_PURGED}{batch_id}"}
        connection.execute(update(Batch).where(Batch.id == batch_id).values(closed))
        return True


def _erase_chunks(engine: Engine, batch_id: int) -> Iterator[int]:
    some = select(Chunk.id).where(Chunk.batch_id == batch_id).order_by(Chunk.id).limit(_CHUNKS_AT_ONCE)
    while True:
        with write(engine) as connection:
            state = connection.execute(lock_state(batch_id)).scalar_one_or_none()
            chunks = connection.execute(some).scalars().all()
            if state is not BatchState.CANCELLED or not chunks:
                return
            items = delete_chunks(connection, Chunk.id.in_(chunks))
        yield items


def hold_off_erasure(connection: Connection) -> None:
    """Let no verdict be erased until the caller's transaction ends, which gives items verdicts that were found.

    Only for who has changed no chunk before; a change of one holds it off too.

    Args:
        connection: The caller's connection.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE chunk IN ROW EXCLUSIVE MODE"))


def _hold_back_workers(connection: Connection) -> None:
    # A worker that found a verdict and has not yet written that its item has it would be left with an item without a
    # verdict. Every claim and every recording changes a chunk first, so this waits for those in flight and holds
    # back new ones, for the seconds that it takes. SQLite has one writer at a time anyway.
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE chunk IN SHARE ROW EXCLUSIVE MODE"))


def _remove_drawn(connection: Connection, remove_file: RemoveFile) -> None:
    for number, input_digest in enumerate(connection.execute(_orphans()).scalars().all(), start=1):
        # Most have none: only what is prioritised or referred, and what a report asked for, is drawn.
        remove_file(thumb_path(input_digest))
        if number % _FILES_AT_ONCE == 0:
            # PostgreSQL ends a transaction that says nothing for half a minute.
            connection.execute(select(1))


def _erase_orphans(connection: Connection) -> int:
    return connection.execute(delete(Result).where(Result.input_digest.in_(_orphans()))).rowcount


def _orphans() -> CompoundSelect[str]:
    # Both databases answer EXCEPT in one pass over each table; there is no index on an item's input.
    shown = select(Item.input_digest).where(Item.input_digest.is_not(None))
    return select(Result.input_digest).except_(shown)
