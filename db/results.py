"""Results: what a model said about an input, and the reports that are read from them."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, and_, func, select
from sqlalchemy.dialects import postgresql, sqlite

from db.batches import get_batch
from db.clock import clock
from db.session import read
from db.tables import CLASSES, Item, ItemState, Result

#: Parameters that one statement carries; SQLite's own limit is 32 766.
_MANY = 5_000

_PROBABILITIES = tuple(f"p_{name}" for name in CLASSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One verdict on its way into the ledger."""

    input_digest: str
    model_digest: str
    #: Seven probabilities in the order of `CLASSES`.
    probabilities: tuple[float, ...]
    diagnosis: str
    confidence: float
    malignant_score: float
    #: How far the image is from what the model saw in training, in the model's own unit.
    distance: float | None = None
    referred: bool
    refer_reason: str | None = None
    #: What computed it, for example `tensorflow-cpu`.
    engine: str
    #: As `db.evidence` packs it; None of a model without.
    evidence: bytes | None = None

    def __post_init__(self) -> None:
        """Refuse what is no verdict: a NaN that reached the ledger would be reported to a physician."""
        if len(self.probabilities) != len(CLASSES):
            raise ValueError(f"A result has {len(CLASSES)} probabilities.")
        if not all(
            map(math.isfinite, (*self.probabilities, self.confidence, self.malignant_score, self.distance or 0.0))
        ):
            raise ValueError("A result has finite numbers only.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """One item of a batch with its verdict, if it has one."""

    item_id: int
    image_id: str | None
    path: str | None
    state: ItemState
    #: Why it was rejected or quarantined.
    reason: str | None
    diagnosis: str | None
    confidence: float | None
    malignant_score: float | None
    referred: bool | None
    refer_reason: str | None
    #: In the order of `CLASSES`.
    probabilities: tuple[float, ...] | None
    #: The model that the batch is pinned to.
    model_digest: str
    age: float | None
    sex: str | None
    localization: str | None
    lesion_id: str | None
    label: str | None


def stored_inputs(engine: Engine, model_digest: str, input_digests: Collection[str]) -> frozenset[str]:
    """Say which inputs a model has seen already; reads only.

    Args:
        engine: The ledger.
        model_digest: The model.
        input_digests: Inputs to look up.

    Returns:
        Those that have a result.
    """
    with read(engine) as connection:
        return frozenset(referred_by_input(connection, model_digest, input_digests))


def referred_by_input(connection: Connection, model_digest: str, input_digests: Collection[str]) -> Mapping[str, bool]:
    """Read whether the stored results refer their inputs, inside the caller's transaction.

    Args:
        connection: The caller's connection.
        model_digest: The model.
        input_digests: Inputs to look up.

    Returns:
        Input digest to `referred`, without the inputs that have no result.
    """
    found: dict[str, bool] = {}
    remaining = iter(set(input_digests))
    while some := list(islice(remaining, _MANY)):
        rows = select(Result.input_digest, Result.referred).where(
            Result.model_digest == model_digest, Result.input_digest.in_(some)
        )
        found.update(connection.execute(rows).all())
    return found


def insert_results(connection: Connection, results: Collection[ResultRow]) -> None:
    """Insert results that are not there yet; idempotent, and inside the caller's transaction.

    Args:
        connection: The caller's connection.
        results: In any order, with repetitions.
    """
    # In digest order: two transactions that insert the same digests in opposite order deadlock on PostgreSQL.
    unique = {(row.input_digest, row.model_digest): row for row in results}
    rows = [_values(unique[key]) for key in sorted(unique)]
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(Result).values(created_at=clock()).on_conflict_do_nothing()
    connection.execute(statement, rows)


def _values(row: ResultRow) -> dict[str, Any]:
    return dict(zip(_PROBABILITIES, map(float, row.probabilities), strict=True)) | {
        "input_digest": row.input_digest,
        "model_digest": row.model_digest,
        "diagnosis": row.diagnosis,
        "confidence": float(row.confidence),
        "malignant_score": float(row.malignant_score),
        "distance": None if row.distance is None else float(row.distance),
        "referred": bool(row.referred),
        "refer_reason": row.refer_reason,
        "engine": row.engine,
        "evidence": row.evidence,
    }


def iter_report(engine: Engine, batch_id: int, page: int = 5000) -> Iterator[ReportRow]:
    """Stream a batch's items with their verdicts, by item id; reads only, a short transaction a page.

    Args:
        engine: The ledger.
        batch_id: The batch.
        page: Items read at once.

    Returns:
        An iterator; memory stays flat whatever the size of the batch.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    model_digest = get_batch(engine, batch_id).model_digest
    return _report_pages(engine, batch_id, model_digest, page)


def _report_pages(engine: Engine, batch_id: int, model_digest: str, page: int) -> Iterator[ReportRow]:
    rows = _report(model_digest, outer=True).where(Item.batch_id == batch_id)
    for row in read_by_item(engine, rows, page):
        yield _report_row(row, model_digest)


def read_by_item(engine: Engine, rows: Select[*tuple[Any, ...]], page: int) -> Iterator[Row[Any]]:
    """Stream rows by item id, a short transaction a page, in flat memory.

    Args:
        engine: The ledger.
        rows: One row an item, with its id as `item_id`.
        page: Rows read at once.

    Yields:
        Each row.
    """
    ordered, last = rows.order_by(Item.id).limit(page), 0
    while True:
        with read(engine) as connection:
            found = connection.execute(ordered.where(Item.id > last)).all()
        yield from found
        if len(found) < page:
            return
        last = found[-1].item_id


def rank_malignant(engine: Engine, batch_id: int, limit: int) -> list[ReportRow]:
    """Rank a batch's items by malignant score, ties by path; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        limit: At most so many.

    Returns:
        The most suspicious first; items without a verdict do not appear.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    model_digest = get_batch(engine, batch_id).model_digest
    scored = Item.state.in_((ItemState.DONE, ItemState.REFERRED))
    ranked = _report(model_digest, outer=False).where(Item.batch_id == batch_id, scored)
    order = (Result.malignant_score.desc(), Item.path, Item.id)
    with read(engine) as connection:
        rows = connection.execute(ranked.order_by(*order).limit(limit)).all()
    return [_report_row(row, model_digest) for row in rows]


def iter_digests(engine: Engine, batch_id: int, page: int = 5000) -> Iterator[tuple[str, str]]:
    """Stream path and image digest of the items whose bytes were read, by item id; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        page: Items read at once.

    Returns:
        An iterator over `(path, image_digest)`.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    get_batch(engine, batch_id)
    return _digest_pages(engine, batch_id, page)


def count_digests(engine: Engine, batch_id: int) -> int:
    """Count what `iter_digests` streams; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        How many items' bytes were read.
    """
    with read(engine) as connection:
        return connection.scalar(select(func.count()).where(*_digested(batch_id))) or 0


def _digested(batch_id: int) -> tuple[ColumnElement[bool], ...]:
    return Item.batch_id == batch_id, Item.path.is_not(None), Item.image_digest.is_not(None)


def _digest_pages(engine: Engine, batch_id: int, page: int) -> Iterator[tuple[str, str]]:
    rows = select(Item.id.label("item_id"), Item.path, Item.image_digest).where(*_digested(batch_id))
    for row in read_by_item(engine, rows, page):
        yield row.path, row.image_digest


def result_of_item(model_digest: str) -> ColumnElement[bool]:
    """Build the condition that joins an item to its result under a model.

    Args:
        model_digest: The batch's model.

    Returns:
        A condition over `Item` and `Result`.
    """
    return and_(Result.input_digest == Item.input_digest, Result.model_digest == model_digest)


def _report(model_digest: str, *, outer: bool) -> Select[Any]:
    columns = (
        Item.id.label("item_id"),
        Item.image_id,
        Item.path,
        Item.state,
        Item.reason,
        Item.age,
        Item.sex,
        Item.localization,
        Item.lesion_id,
        Item.label,
        Result.diagnosis,
        Result.confidence,
        Result.malignant_score,
        Result.referred,
        Result.refer_reason,
        *(getattr(Result, name) for name in _PROBABILITIES),
    )
    return select(*columns).select_from(Item).join(Result, result_of_item(model_digest), isouter=outer)


def _report_row(row: Row[Any], model_digest: str) -> ReportRow:
    scored = row.diagnosis is not None
    return ReportRow(
        item_id=row.item_id,
        image_id=row.image_id,
        path=row.path,
        state=row.state,
        reason=row.reason,
        diagnosis=row.diagnosis,
        confidence=row.confidence,
        malignant_score=row.malignant_score,
        referred=row.referred,
        refer_reason=row.refer_reason,
        probabilities=tuple(getattr(row, name) for name in _PROBABILITIES) if scored else None,
        model_digest=model_digest,
        age=row.age,
        sex=row.sex,
        localization=row.localization,
        lesion_id=row.lesion_id,
        label=row.label,
    )
