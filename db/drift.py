"""Drift: how finished batches are distributed, kept beside them, and which of them is a site's own reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, case, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from db.audit import append_entry
from db.batches import get_batch
from db.clock import clock
from db.control import lock_state
from db.errors import WrongBatchState
from db.results import result_of_item
from db.session import read, write
from db.tables import Batch, BatchState, Chunk, ChunkState, Drift, Item, ItemState, ModelVersion, Result

#: Fewer images say nothing: without any drift a population stability index of b bins is about (b - 1)(1/n + 1/m).
LEAST_IMAGES: Final = 500

#: A cancelled batch is not worked on any more, and may be erased.
_MEASURED: Final = (BatchState.OPEN, BatchState.PAUSED)
_SCORED: Final = (ItemState.DONE, ItemState.REFERRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """A finished batch whose drift nobody measured."""

    batch_id: int
    #: What it is to be compared with: images in each bin of each feature.
    reference: Mapping[str, Sequence[int]]
    #: The batch that the reference comes from; None where it is the model's own.
    compared_with: int | None
    #: Inner bounds of the features that are numbers.
    bounds: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How the scored images of a batch are distributed."""

    images: int
    #: Feature to images in each bin; "age" has one more at the end, for the unknown.
    counts: Mapping[str, tuple[int, ...]]
    #: Body site in the archive's own words to images.
    localizations: Mapping[str | None, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRow:
    """What was measured of a batch."""

    batch_id: int
    images: int
    counts: Mapping[str, Sequence[int]]
    #: Feature to its population stability index; empty where no image was scored.
    indices: Mapping[str, float]
    compared_with: int | None
    accepted: bool
    measured_at: float


def find_unmeasured(engine: Engine) -> list[Unmeasured]:
    """List the finished batches whose drift nobody measured, of models that state a reference; reads only.

    Args:
        engine: The ledger.

    Returns:
        Oldest first.
    """
    open_chunk = exists().where(Chunk.batch_id == Batch.id, Chunk.state != ChunkState.DONE)
    finished = (
        select(Batch.id, Batch.model_digest, ModelVersion.reference)
        .join(ModelVersion, ModelVersion.digest == Batch.model_digest)
        .where(
            Batch.state.in_(_MEASURED),
            ModelVersion.reference.is_not(None),
            ~exists().where(Drift.batch_id == Batch.id),
            ~open_chunk,
        )
        .order_by(Batch.id)
    )
    with read(engine) as connection:
        return [_unmeasured(connection, row) for row in connection.execute(finished).all()]


def _unmeasured(connection: Connection, row: Any) -> Unmeasured:
    accepted = (
        select(Drift.batch_id, Drift.counts)
        .join(Batch, Batch.id == Drift.batch_id)
        .where(Drift.accepted, Batch.model_digest == row.model_digest)
        .order_by(Drift.batch_id.desc())
        .limit(1)
    )
    own = connection.execute(accepted).first()
    return Unmeasured(
        batch_id=row.id,
        reference=row.reference["counts"] if own is None else own.counts,
        compared_with=None if own is None else own.batch_id,
        bounds=row.reference["bounds"],
    )


def measure_distribution(engine: Engine, batch_id: int, bounds: Mapping[str, Sequence[float]]) -> Distribution:
    """Count the scored images of a batch into bins, in the database; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        bounds: Inner bounds of "age" (years), "malignant_score" and "distance".

    Returns:
        The counts.

    Raises:
        UnknownBatch: If it is not there.
    """
    scored = (Item.batch_id == batch_id, Item.state.in_(_SCORED))
    joined = result_of_item(get_batch(engine, batch_id).model_digest)
    columns = {"age": Item.age, "malignant_score": Result.malignant_score, "distance": Result.distance}
    sums: list[ColumnElement[int]] = [func.count()]
    for feature, column in columns.items():
        # How many lie below each bound; a NULL lies below none.
        sums += [_count_where(column < bound) for bound in bounds[feature]]
        sums.append(func.count(column))
    with read(engine) as connection:
        images, *numbers = connection.execute(select(*sums).select_from(Item).join(Result, joined).where(*scored)).one()
        sites = select(Item.localization, func.count()).where(*scored).group_by(Item.localization)
        localizations = {site: int(count) for site, count in connection.execute(sites)}
    counts = {}
    for feature in columns:
        below, numbers = numbers[: len(bounds[feature]) + 1], numbers[len(bounds[feature]) + 1 :]
        counts[feature] = tuple(int(upper - lower) for lower, upper in pairwise((0, *below)))
    counts["age"] = (*counts["age"], images - sum(counts["age"]))
    return Distribution(images=images, counts=counts, localizations=localizations)


def _count_where(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def record_drift(
    engine: Engine,
    unmeasured: Unmeasured,
    *,
    images: int,
    counts: Mapping[str, Sequence[int]],
    indices: Mapping[str, float],
) -> None:
    """Keep what was measured of a batch, unless it is being erased. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        unmeasured: The batch, and what it was compared with.
        images: Scored images.
        counts: Images in each bin of each feature.
        indices: Population stability index of each feature.
    """
    values = {
        "batch_id": unmeasured.batch_id,
        "images": images,
        "counts": {feature: list(bins) for feature, bins in counts.items()},
        "indices": dict(indices),
        "compared_with": unmeasured.compared_with,
        "accepted": False,
        "measured_at": clock(),
    }
    with write(engine) as connection:
        # Erasing closes the batch under the same lock before it deletes anything.
        if connection.execute(lock_state(unmeasured.batch_id)).scalar() not in _MEASURED:
            return
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(Drift).values(**values).on_conflict_do_nothing())


def get_drift(engine: Engine, batch_id: int) -> DriftRow | None:
    """Read what was measured of a batch; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        The row, or None where nothing was measured.
    """
    with read(engine) as connection:
        row = connection.execute(select(Drift.__table__).where(Drift.batch_id == batch_id)).mappings().one_or_none()
    return None if row is None else DriftRow(**row)


def accept_reference(engine: Engine, batch_id: int, *, actor: str, why: str) -> bool:
    """Compare later batches of a batch's model with this batch. Idempotent; its own transaction; audited.

    Args:
        engine: The ledger.
        batch_id: A finished batch.
        actor: Who asks.
        why: The reason, for the audit trail.

    Returns:
        False where it was accepted before.

    Raises:
        UnknownBatch: If it is not there.
        WrongBatchState: If it was not measured, or has too few images.
    """
    get_batch(engine, batch_id)
    with write(engine) as connection:
        row = connection.execute(select(Drift.images, Drift.accepted).where(Drift.batch_id == batch_id)).first()
        if row is None:
            raise WrongBatchState(f"Batch {batch_id} was not measured: it is not finished, or its model is too old.")
        if row.images < LEAST_IMAGES:
            raise WrongBatchState(f"Batch {batch_id} has {row.images} scored images; a reference needs {LEAST_IMAGES}.")
        if row.accepted:
            return False
        connection.execute(update(Drift).where(Drift.batch_id == batch_id).values(accepted=True))
        append_entry(connection, actor, "accept_reference", f"batch {batch_id}", why)
        return True
