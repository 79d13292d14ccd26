"""Pictures: where the artifact store keeps a thumbnail of what was scored, and which images should have one."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, select

from db.session import read
from db.tables import Batch, Item, ItemState, Result

#: Folder of the artifact store: what the network saw of an image, by input digest.
THUMBS: Final = "thumbs"

_SCORED: Final = (ItemState.DONE, ItemState.REFERRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredItem:
    """A scored image on its way to be drawn."""

    path: str
    #: Of a DICOM object with several frames: which one, from 1.
    frame: int | None
    image_digest: str
    input_digest: str


def thumb_path(input_digest: str) -> str:
    """Name the thumbnail of an input, relative to the artifact store."""
    return f"{THUMBS}/{input_digest}"


def scored_inputs(engine: Engine, batch_id: int) -> dict[int, list[str]]:
    """List a batch's scored inputs by chunk; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        Chunk id to input digests.
    """
    rows = select(Item.chunk_id, Item.input_digest).where(Item.batch_id == batch_id, Item.state.in_(_SCORED))
    found: dict[int, list[str]] = {}
    with read(engine) as connection:
        for chunk_id, digest in connection.execute(rows.order_by(Item.id)):
            found.setdefault(chunk_id, []).append(str(digest))
    return found


def scored_items(engine: Engine, chunk_id: int) -> tuple[str, list[ScoredItem]]:
    """Read a chunk's scored items, and where their archive is; reads only.

    Args:
        engine: The ledger.
        chunk_id: The chunk.

    Returns:
        The archive's root as it was submitted, and the items by id.
    """
    source = select(Batch.source).join(Item, Item.batch_id == Batch.id).where(Item.chunk_id == chunk_id).limit(1)
    columns = (Item.path, Item.frame, Item.image_digest, Item.input_digest)
    rows = select(*columns).where(Item.chunk_id == chunk_id, Item.state.in_(_SCORED)).order_by(Item.id)
    with read(engine) as connection:
        root = connection.execute(source).scalar_one_or_none() or ""
        return root, [ScoredItem(**row) for row in connection.execute(rows).mappings()]


def inputs_with_result(engine: Engine, input_digests: Collection[str]) -> frozenset[str]:
    """Say which inputs any model has a verdict on; reads only.

    Args:
        engine: The ledger.
        input_digests: At most a few thousand.

    Returns:
        Those that have one.
    """
    rows = select(Result.input_digest).where(Result.input_digest.in_(input_digests))
    with read(engine) as connection:
        return frozenset(connection.execute(rows).scalars())
