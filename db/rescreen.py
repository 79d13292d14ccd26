"""Screening an archive again under another model, and what that changes."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Engine,
    Select,
    case,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.orm import aliased

from db.batches import Loaded, discard_stale_loading, find_batch, finish_loading, get_batch, insert_chunk, start_batch
from db.control import HALF_PURGED
from db.errors import WrongBatchState
from db.models import get_model
from db.session import read, write
from db.tables import Chunk, Item, ItemState, Result

#: New batches go first, whatever priority they were given.
RESCREEN_PRIORITY: Final = -1_000_000

_PAGE: Final = 5_000

_COPIED: Final = (
    Item.path,
    Item.size,
    Item.mtime_ns,
    Item.image_id,
    Item.lesion_id,
    Item.patient_ref,
    Item.age,
    Item.sex,
    Item.localization,
    Item.label,
    Item.frame,
    Item.study_uid,
    Item.series_uid,
    Item.instance_uid,
)


def copy_batch(engine: Engine, batch_id: int, model_digest: str, actor: str) -> Loaded:
    """Open the items of a batch again as a batch of another model, behind all others. Idempotent; audited.

    Many transactions; killed half-way, what was copied is deleted by the next call, or the next submit of the archive.
    What was rejected or quarantined is tried again, unless it never had a path.

    Args:
        engine: The ledger.
        batch_id: A batch that was loaded to its end.
        model_digest: The model to screen it with.
        actor: Who asks.

    Returns:
        The batch of that model; it existed where the archive was screened with that model before.

    Raises:
        UnknownBatch: If the batch is not there.
        WrongBatchState: If it was not loaded to its end, or is half purged.
        UnknownModel: If the model is not registered.
    """
    get_model(engine, model_digest)
    batch = get_batch(engine, batch_id)
    if batch.manifest_digest is None or batch.manifest_digest.startswith(HALF_PURGED):
        raise WrongBatchState(f"Batch {batch_id} does not hold its whole archive; submit its archive again.")
    existing = find_batch(engine, batch.manifest_digest, model_digest)
    if existing is not None:
        return Loaded(batch_id=existing, existed=True)
    discard_stale_loading(engine, batch.source)
    copy = start_batch(
        engine, name=batch.name, source=batch.source, model_digest=model_digest, priority=RESCREEN_PRIORITY
    )
    with read(engine) as connection:
        chunks = (
            connection.execute(select(Chunk.id).where(Chunk.batch_id == batch_id).order_by(Chunk.id)).scalars().all()
        )
    for chunk_id in chunks:
        _copy_chunk(engine, chunk_id, copy)
    return finish_loading(engine, copy, batch.manifest_digest, actor)


def _copy_chunk(engine: Engine, chunk_id: int, batch_id: int) -> None:
    without_path = func.coalesce(func.sum(case((Item.path.is_(None), 1), else_=0)), 0)
    counted = select(func.count(), without_path).select_from(Item).where(Item.chunk_id == chunk_id)
    with write(engine) as connection:
        items, rejected = connection.execute(counted).one()
        if not items:
            return
        copy = insert_chunk(connection, batch_id, items=items, rejected=rejected)
        state = case((Item.path.is_(None), ItemState.REJECTED.value), else_=ItemState.OPEN.value)
        reason = case((Item.path.is_(None), Item.reason))
        values = (literal(batch_id), literal(copy), *_COPIED, state, reason, literal(0))
        names = ["batch_id", "chunk_id", *(column.key for column in _COPIED), "state", "reason", "marks"]
        rows = select(*values).where(Item.chunk_id == chunk_id).order_by(Item.id)
        connection.execute(insert(Item).from_select(names, rows))


class ChangeKind(IntEnum):
    """How a verdict changed, the worst first."""

    NEWLY_PRIORITISED = 0
    NEWLY_REFERRED = 1
    NO_LONGER_PRIORITISED = 2
    OTHER_DIAGNOSIS = 3
    NO_LONGER_REFERRED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one of the two models says."""

    diagnosis: str
    malignant_score: float
    prioritised: bool
    referred: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An item whose verdict is another one."""

    item_id: int
    image_id: str | None
    path: str | None
    kind: ChangeKind
    before: Side
    after: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSide:
    """A model in a comparison.

    Attributes:
        digest: The model.
        threshold: Malignant score from which on it prioritises.
    """

    digest: str
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What two models say about a batch, counted."""

    #: Items that both have a verdict on.
    compared: int
    #: Items that only one of them, or neither, has a verdict on.
    incomparable: int
    kinds: dict[ChangeKind, int]


class Comparison:
    """Two models' verdicts on the same inputs of a batch; reads only.

    Verdicts are compared by input, so either model's batch of the archive will do.

    Args:
        engine: The ledger.
        batch_id: The batch.
        before: The one model.
        after: The other model.
    """

    def __init__(self, engine: Engine, batch_id: int, before: ModelSide, after: ModelSide) -> None:
        get_batch(engine, batch_id)
        self._engine, self._batch_id = engine, batch_id
        self._models = (before, after)
        self._a, self._b = aliased(Result), aliased(Result)

    def count(self) -> Changes:
        """Count the changes by kind."""
        # By its name: PostgreSQL takes an expression with parameters for another one each time.
        kinds = self._joined(self._kind().label("kind"), func.count()).group_by("kind")
        found = select(func.count()).select_from(Item).where(Item.batch_id == self._batch_id)
        with read(self._engine) as connection:
            counts: dict[int | None, int] = dict(connection.execute(kinds).all())
            total = connection.execute(found).scalar_one()
        compared = sum(counts.values())
        changed = {kind: counts[kind] for kind in ChangeKind if kind in counts}
        return Changes(compared=compared, incomparable=total - compared, kinds=changed)

    def list(self) -> Iterator[Change]:
        """Stream the items whose verdict changed, the worst first: by kind, then by the new malignant score."""
        columns: list[Any] = [Item.id, Item.image_id, Item.path, self._kind().label("kind")]
        for name, side in (("before", self._a), ("after", self._b)):
            columns += [
                side.diagnosis.label(f"{name}_diagnosis"),
                side.malignant_score.label(f"{name}_score"),
                side.referred.label(f"{name}_referred"),
            ]
        changed = self._joined(*columns).where(self._kind().is_not(None))
        order = ("kind", self._b.malignant_score.desc(), Item.id)
        # One statement: paging by three keys would compute the kinds again for every page.
        with read(self._engine) as connection:
            rows = connection.execution_options(yield_per=_PAGE).execute(changed.order_by(*order))
            for row in rows:
                yield Change(
                    item_id=row.id,
                    image_id=row.image_id,
                    path=row.path,
                    kind=ChangeKind(row.kind),
                    before=self._side(row.before_diagnosis, row.before_score, row.before_referred, self._models[0]),
                    after=self._side(row.after_diagnosis, row.after_score, row.after_referred, self._models[1]),
                )

    @staticmethod
    def _side(diagnosis: str, score: float, referred: bool, model: ModelSide) -> Side:
        return Side(
            diagnosis=diagnosis, malignant_score=score, prioritised=score >= model.threshold, referred=bool(referred)
        )

    def _joined(self, *columns: Any) -> Select[Any]:
        before, after = self._models
        return (
            select(*columns)
            .select_from(Item)
            .join(self._a, (self._a.input_digest == Item.input_digest) & (self._a.model_digest == before.digest))
            .join(self._b, (self._b.input_digest == Item.input_digest) & (self._b.model_digest == after.digest))
            .where(Item.batch_id == self._batch_id)
        )

    def _kind(self) -> ColumnElement[int | None]:
        before, after = self._models
        was, is_now = self._a.malignant_score >= before.threshold, self._b.malignant_score >= after.threshold
        return case(
            (is_now & ~was, ChangeKind.NEWLY_PRIORITISED.value),
            (self._b.referred & ~self._a.referred, ChangeKind.NEWLY_REFERRED.value),
            (was & ~is_now, ChangeKind.NO_LONGER_PRIORITISED.value),
            (self._a.diagnosis != self._b.diagnosis, ChangeKind.OTHER_DIAGNOSIS.value),
            (self._a.referred & ~self._b.referred, ChangeKind.NO_LONGER_REFERRED.value),
        )
