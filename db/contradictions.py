"""Contradictions: where confirmed diagnoses say otherwise than a model; reads only."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Engine, Row, and_, select

from db.labels import ConfirmedImage, confirmed_images
from db.session import read
from db.tables import Item, Result

#: Rows looked up at once.
_MANY: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """An image that a model diagnosed as something else than was confirmed."""

    image_id: str | None
    path: str
    #: What was confirmed.
    dx: str
    #: How it was.
    dx_type: str
    #: What the model said.
    diagnosis: str
    confidence: float
    malignant_score: float
    referred: bool
    input_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A model's verdicts against the ledger's confirmed diagnoses."""

    #: Images that have both a confirmed diagnosis and a verdict.
    images: int
    #: Those of them where the two differ.
    contradicted: int
    #: The most confident of those, the most confident first.
    worst: tuple[Contradiction, ...]


def judge_by_labels(engine: Engine, model_digest: str, limit: int) -> Judged:
    """Compare a model's verdicts with the diagnoses that nothing contradicts, see `db.labels`; reads only.

    Args:
        engine: The ledger.
        model_digest: The model.
        limit: Contradictions to return at most; of equal confidence the image that was found first.

    Returns:
        How many agree, and the worst that do not.
    """
    images = contradicted = 0
    worst: list[tuple[float, int, Contradiction]] = []
    for row, image in _verdicts(engine, model_digest):
        images += 1
        if row.diagnosis == image.dx:
            continue
        contradicted += 1
        entry = (row.confidence, -row.id, _contradiction(row, image))
        # Ids differ, so that no two entries are compared beyond them.
        (heapq.heappush if len(worst) < limit else heapq.heappushpop)(worst, entry)
    ordered = sorted(worst, key=lambda entry: entry[:2], reverse=True)
    return Judged(images=images, contradicted=contradicted, worst=tuple(entry[2] for entry in ordered))


def _verdicts(engine: Engine, model_digest: str) -> Iterator[tuple[Row[Any], ConfirmedImage]]:
    confirmed = {image.item_id: image for image in confirmed_images(engine).images}
    ids = sorted(confirmed)
    columns: tuple[Any, ...] = (
        *(Item.id, Item.image_id, Item.path, Item.input_digest),
        *(Result.diagnosis, Result.confidence, Result.malignant_score, Result.referred),
    )
    theirs = and_(Result.input_digest == Item.input_digest, Result.model_digest == model_digest)
    rows = select(*columns).join(Result, theirs)
    for start in range(0, len(ids), _MANY):
        with read(engine) as connection:
            found = connection.execute(rows.where(Item.id.in_(ids[start : start + _MANY]))).all()
        for row in found:
            yield row, confirmed[row.id]


def _contradiction(row: Row[Any], image: ConfirmedImage) -> Contradiction:
    return Contradiction(
        image_id=row.image_id,
        path=row.path or "",
        dx=image.dx,
        dx_type=image.dx_type,
        diagnosis=row.diagnosis,
        confidence=row.confidence,
        malignant_score=row.malignant_score,
        referred=row.referred,
        input_digest=row.input_digest,
    )
