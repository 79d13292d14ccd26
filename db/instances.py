"""DICOM instances of a batch with their verdicts, as reports about them need them; reads only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Engine, Select, func, select

from db.batches import get_batch
from db.results import read_by_item, result_of_item
from db.session import read
from db.tables import CLASSES, Item, ItemState, Result

_SCORED: Final = (ItemState.DONE, ItemState.REFERRED)
_PROBABILITIES: Final = tuple(f"p_{name}" for name in CLASSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenedInstance:
    """A frame of a DICOM object, or the whole of one with a single frame, and what the model said."""

    item_id: int
    path: str
    #: From 1; None of an object with one frame.
    frame: int | None
    instance_uid: str
    image_digest: str
    input_digest: str
    model_digest: str
    diagnosis: str
    #: Probability of the diagnosis.
    confidence: float
    malignant_score: float
    #: In the order of `CLASSES`.
    probabilities: tuple[float, ...]
    referred: bool
    #: A code.
    refer_reason: str | None
    engine: str
    #: As `db.evidence` packs it.
    evidence: bytes | None
    #: When the verdict was recorded, seconds since 1970.
    created_at: float


def count_instances(engine: Engine, batch_id: int) -> int:
    """Count what `iter_instances` streams; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        How many DICOM instances and frames have a verdict.
    """
    with read(engine) as connection:
        return connection.scalar(select(func.count()).select_from(Item).where(*_scored(batch_id))) or 0


def iter_instances(engine: Engine, batch_id: int, page: int = 5000) -> Iterator[ScreenedInstance]:
    """Stream a batch's scored DICOM instances, by item id; reads only, a short transaction a page.

    Args:
        engine: The ledger.
        batch_id: The batch.
        page: Items read at once.

    Returns:
        An iterator; memory stays flat whatever the size of the batch.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    return _pages(engine, batch_id, get_batch(engine, batch_id).model_digest, page)


def _pages(engine: Engine, batch_id: int, model_digest: str, page: int) -> Iterator[ScreenedInstance]:
    for row in read_by_item(engine, _select(model_digest).where(*_scored(batch_id)), page):
        told = row._asdict()
        probabilities = tuple(told.pop(name) for name in _PROBABILITIES)
        yield ScreenedInstance(**told, probabilities=probabilities, model_digest=model_digest)


def _scored(batch_id: int) -> tuple[ColumnElement[bool], ...]:
    return Item.batch_id == batch_id, Item.state.in_(_SCORED), Item.instance_uid.is_not(None)


def _select(model_digest: str) -> Select[Any]:
    columns = (
        Item.id.label("item_id"),
        Item.path,
        Item.frame,
        Item.instance_uid,
        Item.image_digest,
        Item.input_digest,
        Result.diagnosis,
        Result.confidence,
        Result.malignant_score,
        Result.referred,
        Result.refer_reason,
        Result.engine,
        Result.evidence,
        Result.created_at,
        *(getattr(Result, name) for name in _PROBABILITIES),
    )
    return select(*columns).select_from(Item).join(Result, result_of_item(model_digest))
