"""What is known already: instances of a PACS that an earlier batch has verdicts on are not fetched again."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Engine, RowMapping, and_, bindparam, func, or_, select, update
from sqlalchemy.orm import aliased

from db.batches import get_batch
from db.clock import clock
from db.control import refusal
from db.counts import settle_chunk
from db.erasure import hold_off_erasure
from db.results import result_of_item
from db.session import read, write
from db.tables import Batch, BatchState, Chunk, Item, ItemState, Result

#: Chunks that are looked up together, against all earlier batches.
_CHUNKS: Final = 64

_Earlier = aliased(Item)
_VERDICTS: Final = (ItemState.DONE, ItemState.REFERRED)


def settle_known(engine: Engine, batch_id: int, place: str) -> int:
    """Give a loading batch the verdicts that its model gave the same instances before. Idempotent; many transactions.

    An instance is the same where server, path, identifier, frame and all that the model is told of the patient are:
    a SOP Instance UID names one object for ever (PS3.5, 9), and whoever changes its pixels must give it another.

    Args:
        engine: The ledger.
        batch_id: A batch in state loading.
        place: Address of the PACS, without what it is asked for.

    Returns:
        How many items have a verdict now.

    Raises:
        UnknownBatch: If the batch is not there, or was discarded as stale.
        WrongBatchState: If the batch is not loading any more.
    """
    model = get_batch(engine, batch_id).model_digest
    with read(engine) as connection:
        chunks = (
            connection.execute(select(Chunk.id).where(Chunk.batch_id == batch_id).order_by(Chunk.id)).scalars().all()
        )
    return sum(
        _settle(engine, batch_id, model, _same(batch_id, chunks[start : start + _CHUNKS], place, model))
        for start in range(0, len(chunks), _CHUNKS)
    )


def _same(batch_id: int, chunks: Sequence[int], place: str, model: str) -> ColumnElement[bool]:
    told = ("frame", "age", "sex", "localization")
    return and_(
        Item.batch_id == batch_id,
        Item.chunk_id.between(chunks[0], chunks[-1]),
        Item.state == ItemState.OPEN,
        Item.instance_uid.is_not(None),
        _Earlier.instance_uid == Item.instance_uid,
        _Earlier.path == Item.path,
        *(getattr(_Earlier, name).is_not_distinct_from(getattr(Item, name)) for name in told),
        _Earlier.state.in_(_VERDICTS),
        _Earlier.batch_id.in_(
            select(Batch.id).where(
                Batch.model_digest == model,
                Batch.id != batch_id,
                or_(Batch.source == place, Batch.source.startswith(f"{place}?", autoescape=True)),
            )
        ),
    )


def _settle(engine: Engine, batch_id: int, model: str, same: ColumnElement[bool]) -> int:
    newest = select(Item.id, Item.chunk_id, func.max(_Earlier.id).label("earlier")).join(_Earlier, same)
    pairs = newest.group_by(Item.id, Item.chunk_id).subquery()
    verdicts = select(pairs.c.id, pairs.c.chunk_id, Item.image_digest, Item.input_digest, Item.state)
    with write(engine) as connection:
        hold_off_erasure(connection)
        touched = update(Batch).where(Batch.id == batch_id, Batch.state == BatchState.LOADING)
        if connection.execute(touched.values(touched_at=clock())).rowcount == 0:
            raise refusal(connection, batch_id, "takes no more verdicts")
        found = verdicts.join(Item, Item.id == pairs.c.earlier).join(Result, result_of_item(model))
        rows = connection.execute(found).mappings().all()
        if rows:
            connection.execute(update(Item).where(Item.id == bindparam("item")), [_values(row) for row in rows])
        for chunk_id in sorted({row["chunk_id"] for row in rows}):
            settle_chunk(connection, chunk_id)
        return len(rows)


def _values(row: RowMapping) -> dict[str, Any]:
    return {"item": row["id"], **{name: row[name] for name in ("state", "image_digest", "input_digest")}}
