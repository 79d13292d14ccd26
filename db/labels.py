"""Confirmed diagnoses: what people found out about lesions that were screened, and which of it is fit to learn from."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.dialects import postgresql, sqlite

from db.audit import append_entry
from db.batches import get_batch
from db.clock import clock
from db.session import read, write
from db.tables import DX_TYPES, Batch, Item, Label

#: Rows looked up and written at once.
_MANY: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """One confirmed diagnosis on its way into the ledger."""

    #: Line of the file it comes from.
    line: int
    image_id: str
    #: One of `CLASSES`.
    dx: str
    #: One of `DX_TYPES`.
    dx_type: str
    #: Who made the diagnosis.
    labelled_by: str
    #: When, as an ISO 8601 date.
    labelled_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """What became of a file of diagnoses."""

    added: int
    #: They were there already, letter by letter.
    known: int
    #: Lines that name no image of the batch, or several.
    problems: tuple[tuple[int, str], ...]


#: What tells images apart: the digest of the file, and its frame; 0 where it has but one.
_Image: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmedImage:
    """An image with a diagnosis that nothing contradicts."""

    item_id: int
    source: str
    path: str
    #: Of a DICOM object with several frames: which one, from 1.
    frame: int | None
    image_digest: str
    lesion_id: str | None
    age: float | None
    sex: str | None
    localization: str | None
    dx: str
    dx_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """All that can be learned from, and how much cannot."""

    images: tuple[ConfirmedImage, ...]
    #: Item ids of images whose diagnosis is contradicted, by another one of the image or of its lesion.
    conflicting: tuple[int, ...]
    #: Images whose bytes no worker has read, so that nothing says which image was meant.
    unread: int


def add_labels(engine: Engine, batch_id: int, rows: Iterable[LabelRow], actor: str) -> Labelled:
    """Add confirmed diagnoses to a batch's images. Idempotent; a transaction for some hundred rows each; audited.

    Args:
        engine: The ledger.
        batch_id: The batch whose images they are about.
        rows: Streamed.
        actor: Who feeds them in.

    Returns:
        How many are new, and which lines could not be matched.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    get_batch(engine, batch_id)
    remaining = iter(rows)
    seen = added = 0
    problems: list[tuple[int, str]] = []
    while some := list(islice(remaining, _MANY)):
        with write(engine) as connection:
            matched, odd = _match(connection, batch_id, some)
            new = _insert(connection, matched)
            if new:
                append_entry(connection, actor, "label_batch", f"batch {batch_id}", f"{new} labels")
        seen, added = seen + len(matched), added + new
        problems += odd
    return Labelled(added=added, known=seen - added, problems=tuple(problems))


def _match(
    connection: Connection, batch_id: int, rows: list[LabelRow]
) -> tuple[list[tuple[int, LabelRow]], list[tuple[int, str]]]:
    wanted = {row.image_id for row in rows}
    query = select(Item.image_id, Item.id).where(Item.batch_id == batch_id, Item.image_id.in_(wanted))
    items: dict[str | None, list[int]] = defaultdict(list)
    for image_id, item_id in connection.execute(query):
        items[image_id].append(item_id)
    matched, odd = [], []
    for row in rows:
        found = items.get(row.image_id, [])
        if len(found) == 1:
            matched.append((found[0], row))
        else:
            odd.append((row.line, "ambiguous_image" if found else "unknown_image"))
    return matched, odd


def _insert(connection: Connection, matched: list[tuple[int, LabelRow]]) -> int:
    if not matched:
        return 0
    values = [
        {
            "item_id": item_id,
            "dx": row.dx,
            "dx_type": row.dx_type,
            "labelled_by": row.labelled_by,
            "labelled_on": row.labelled_on,
        }
        for item_id, row in matched
    ]
    before = connection.execute(select(func.count()).select_from(Label)).scalar_one()
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(Label).values(created_at=clock()).on_conflict_do_nothing(), values)
    return connection.execute(select(func.count()).select_from(Label)).scalar_one() - before


def confirmed_images(engine: Engine, batch_id: int | None = None) -> Confirmed:
    """Choose the images that can be learned from; reads only.

    Of an image's diagnoses the best founded counts: histology before confocal microscopy before consensus before
    follow-up. Where equally good ones differ, about an image or about a lesion, nobody guesses: it is left out, and so
    is an image that contradicts the best founded diagnosis of its lesion. An image that was screened in several batches
    is one image.

    Args:
        engine: The ledger.
        batch_id: Only this batch; None takes the whole ledger.

    Returns:
        The images, by digest.
    """
    best: dict[_Image, list[ConfirmedImage]] = defaultdict(list)
    unread: set[int] = set()
    with read(engine) as connection:
        for digest, image in _labelled(connection, batch_id):
            if digest is None:
                unread.add(image.item_id)
                continue
            kept = best[digest, image.frame or 0]
            if kept and _rank(image) < _rank(kept[0]):
                kept.clear()
            if not kept or _rank(image) == _rank(kept[0]):
                kept.append(image)
    torn = {name for name, kept in best.items() if len({image.dx for image in kept}) > 1}
    torn |= _torn_lesions({name: kept[0] for name, kept in best.items() if name not in torn})
    return Confirmed(
        images=tuple(kept[0] for name, kept in sorted(best.items()) if name not in torn),
        conflicting=tuple(sorted(image.item_id for name in torn for image in best[name])),
        unread=len(unread),
    )


def _labelled(connection: Connection, batch_id: int | None) -> Iterator[tuple[str | None, ConfirmedImage]]:
    columns = (Item.id, Batch.source, Item.path, Item.frame, Item.image_digest, Item.lesion_id, Item.age, Item.sex)
    query = select(*columns, Item.localization, Label.dx, Label.dx_type).join(Item, Item.id == Label.item_id)
    query = query.join(Batch, Batch.id == Item.batch_id).order_by(Item.id, Label.id)
    for row in connection.execute(query if batch_id is None else query.where(Item.batch_id == batch_id)):
        yield (
            row.image_digest,
            ConfirmedImage(
                item_id=row.id,
                source=row.source,
                path=row.path or "",
                frame=row.frame,
                image_digest=row.image_digest or "",
                lesion_id=row.lesion_id,
                age=row.age,
                sex=row.sex,
                localization=row.localization,
                dx=row.dx,
                dx_type=row.dx_type,
            ),
        )


def _rank(image: ConfirmedImage) -> int:
    return DX_TYPES.index(image.dx_type)


def _torn_lesions(images: dict[_Image, ConfirmedImage]) -> set[_Image]:
    # A lesion's name means something within its archive only.
    lesions: dict[tuple[str, str], list[_Image]] = defaultdict(list)
    for name, image in images.items():
        if image.lesion_id is not None:
            lesions[image.source, image.lesion_id].append(name)
    torn: set[_Image] = set()
    for names in lesions.values():
        best = min(_rank(images[name]) for name in names)
        found = {images[name].dx for name in names if _rank(images[name]) == best}
        # One answer: whoever contradicts it is left out. Several: nobody knows.
        torn.update(name for name in names if found != {images[name].dx})
    return torn
