"""Worklist: a batch's lesions in the order they should be read in, and what nobody could assess; reads only."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from sqlalchemy import ColumnElement, Engine, Row, Select, case, func, select

from db.batches import get_batch
from db.results import result_of_item
from db.session import read
from db.tables import CLASSES, Item, ItemState, Result

_SCORED: Final = (ItemState.DONE, ItemState.REFERRED)
_UNREAD: Final = (ItemState.REJECTED, ItemState.QUARANTINED)
_PROBABILITIES: Final = tuple(f"p_{name}" for name in CLASSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorklistImage:
    """A scored image as a reader wants it."""

    item_id: int
    image_id: str | None
    path: str
    patient_ref: str | None
    lesion_id: str | None
    age: float | None
    sex: str | None
    localization: str | None
    diagnosis: str
    confidence: float
    malignant_score: float
    referred: bool
    refer_reason: str | None
    #: In the order of `CLASSES`.
    probabilities: tuple[float, ...]
    input_digest: str
    image_digest: str
    #: As `db.evidence` packs it.
    evidence: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadImage:
    """An image or row without a verdict: a person must look."""

    image_id: str | None
    path: str | None
    patient_ref: str | None
    lesion_id: str | None
    state: ItemState
    #: A code.
    reason: str


def rank_lesions(engine: Engine, batch_id: int, limit: int) -> list[tuple[int, ...]]:
    """Rank a batch's lesions by their worst image's malignant score; reads only.

    A lesion is what has one lesion id within one patient; an image without a lesion id is a lesion of its own. Ties go
    to the image that was found first.

    Args:
        engine: The ledger.
        batch_id: The batch.
        limit: At most so many lesions.

    Returns:
        Item ids a lesion, the worst image first; the most suspicious lesion first.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    joined = result_of_item(get_batch(engine, batch_id).model_digest)
    scored = (Item.batch_id == batch_id, Item.state.in_(_SCORED))
    alone = case((Item.lesion_id.is_(None), Item.id))
    lesion: dict[str, Any] = {"partition_by": (Item.patient_ref, Item.lesion_id, alone)}
    images = (
        select(
            Item.id.label("item_id"),
            Result.malignant_score.label("score"),
            func.max(Result.malignant_score).over(**lesion).label("worst"),
            func.min(Item.id).over(**lesion).label("lesion"),
        )
        .select_from(Item)
        .join(Result, joined)
        .where(*scored)
        .subquery()
    )
    columns = images.c
    order = (columns.worst.desc(), columns.lesion, columns.score.desc(), columns.item_id)
    ranked: list[tuple[int, ...]] = []
    with read(engine) as connection:
        rows = connection.execute(select(columns.item_id, columns.lesion).order_by(*order))
        for _, members in groupby(rows, key=lambda row: row.lesion):
            if len(ranked) == limit:
                break
            ranked.append(tuple(row.item_id for row in members))
    return ranked


def count_lesions(engine: Engine, batch_id: int) -> int:
    """Count a batch's lesions that have a scored image; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        How many.
    """
    scored = (Item.batch_id == batch_id, Item.state.in_(_SCORED))
    named = select(Item.patient_ref, Item.lesion_id).where(*scored, Item.lesion_id.is_not(None)).distinct().subquery()
    alone = select(func.count()).select_from(Item).where(*scored, Item.lesion_id.is_(None))
    with read(engine) as connection:
        several = connection.execute(select(func.count()).select_from(named)).scalar_one()
        return int(several) + int(connection.execute(alone).scalar_one())


def read_images(engine: Engine, batch_id: int, item_ids: Collection[int]) -> dict[int, WorklistImage]:
    """Read scored images; reads only.

    Args:
        engine: The ledger.
        batch_id: Their batch.
        item_ids: At most a few thousand.

    Returns:
        Item id to image, without those that were erased in the meantime.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    joined = result_of_item(get_batch(engine, batch_id).model_digest)
    rows = _images().join(Result, joined).where(Item.id.in_(item_ids), Item.batch_id == batch_id)
    with read(engine) as connection:
        return {row.item_id: _image(row) for row in connection.execute(rows)}


def _images() -> Select[Any]:
    columns: tuple[Any, ...] = (
        Item.id.label("item_id"),
        *(Item.image_id, Item.path, Item.patient_ref, Item.lesion_id, Item.age, Item.sex, Item.localization),
        *(Item.input_digest, Item.image_digest, Result.diagnosis, Result.confidence, Result.malignant_score),
        *(Result.referred, Result.refer_reason, Result.evidence),
        *(getattr(Result, name) for name in _PROBABILITIES),
    )
    return select(*columns).select_from(Item)


def _image(row: Row[Any]) -> WorklistImage:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public accessor
    probabilities = tuple(values.pop(name) for name in _PROBABILITIES)
    return WorklistImage(**values, probabilities=probabilities)


def iter_unread(engine: Engine, batch_id: int, page: int = 5000) -> Iterator[UnreadImage]:
    """Stream what has no verdict, the quarantined first, then by reason; reads only, a short transaction a page.

    Args:
        engine: The ledger.
        batch_id: The batch.
        page: Rows read at once.

    Returns:
        An iterator.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    get_batch(engine, batch_id)
    return _unread_pages(engine, batch_id, page)


def _unread_pages(engine: Engine, batch_id: int, page: int) -> Iterator[UnreadImage]:
    columns = (Item.id, Item.image_id, Item.path, Item.patient_ref, Item.lesion_id, Item.state, Item.reason)
    for state in reversed(_UNREAD):
        unread = select(*columns).where(Item.batch_id == batch_id, Item.state == state, Item.reason.is_not(None))
        last: tuple[str, int] | None = None
        while True:
            rows = unread if last is None else unread.where(_after(*last))
            with read(engine) as connection:
                found = connection.execute(rows.order_by(Item.reason, Item.id).limit(page)).all()
            for row in found:
                yield UnreadImage(**{name: value for name, value in row._mapping.items() if name != "id"})  # noqa: SLF001
            if len(found) < page:
                break
            last = found[-1].reason, found[-1].id


def _after(reason: str, item_id: int) -> ColumnElement[bool]:
    return (Item.reason > reason) | ((Item.reason == reason) & (Item.id > item_id))


def count_diagnoses(engine: Engine, batch_id: int) -> dict[str, int]:
    """Count a batch's scored images by diagnosis; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        Class to images, every class among them.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    joined = result_of_item(get_batch(engine, batch_id).model_digest)
    scored = (Item.batch_id == batch_id, Item.state.in_(_SCORED))
    rows = select(Result.diagnosis, func.count()).select_from(Item).join(Result, joined).where(*scored)
    with read(engine) as connection:
        found = {str(name): int(count) for name, count in connection.execute(rows.group_by(Result.diagnosis))}
    return {name: found.get(name, 0) for name in CLASSES}


def sum_probabilities(engine: Engine, batch_id: int) -> tuple[float, ...]:
    """Sum the probabilities of a batch's scored images, class by class; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        Expected images a class, in the order of `CLASSES`.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    joined = result_of_item(get_batch(engine, batch_id).model_digest)
    sums = [func.coalesce(func.sum(getattr(Result, name)), 0.0) for name in _PROBABILITIES]
    rows = select(*sums).select_from(Item).join(Result, joined)
    with read(engine) as connection:
        found = connection.execute(rows.where(Item.batch_id == batch_id, Item.state.in_(_SCORED))).one()
    return tuple(map(float, found))


def count_in_bins(engine: Engine, batch_id: int, bins: int) -> tuple[Sequence[int], Sequence[int]]:
    """Count a batch's scored images in bins of equal width over [0, 1]; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        bins: How many bins.

    Returns:
        Images a bin by malignant score, and by confidence.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    joined = result_of_item(get_batch(engine, batch_id).model_digest)
    scored = (Item.batch_id == batch_id, Item.state.in_(_SCORED))
    counted = []
    with read(engine) as connection:
        for column in (Result.malignant_score, Result.confidence):
            bounds = [func.sum(case((column < (one + 1) / bins, 1), else_=0)) for one in range(bins - 1)]
            rows = select(*bounds, func.count()).select_from(Item).join(Result, joined).where(*scored)
            below = [int(count or 0) for count in connection.execute(rows).one()]
            counted.append([count - before for count, before in zip(below, [0, *below], strict=False)])
    return counted[0], counted[1]
