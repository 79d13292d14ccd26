"""Submitting: writes an archive's manifest into the ledger, chunk by chunk, and rings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from sqlalchemy import Engine

from db.batches import ItemRow, add_chunk, discard_stale_loading, find_batch, finish_loading, get_batch, start_batch
from db.known import settle_known
from producer.archive import Archive
from producer.errors import ArchiveProblem
from producer.manifest import Manifest
from worker.dicomweb import DicomWebPlace
from worker.doorbell import Doorbell

#: Chunks rung at once after a submit; the feeder goes on from there.
_FIRST_RING = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What became of an archive."""

    batch: int
    items: int
    chunks: int
    #: The same archive was submitted under the same model before; nothing was added.
    existed: bool
    #: What is odd in table and archive: reason code to count.
    problems: dict[str, int]
    #: Files that are no items: ending to count.
    ignored: dict[str, int]


def submit_archive(
    engine: Engine,
    archive: Archive,
    *,
    name: str,
    model_digest: str,
    priority: int = 0,
    chunk_items: int = 256,
) -> Submitted:
    """Read an archive and write it into the ledger. Idempotent for an unchanged archive; a transaction a chunk.

    Args:
        engine: The ledger.
        archive: From `open_archive`.
        name: What the user calls the batch.
        model_digest: The model that the batch is pinned to.
        priority: Higher goes first.
        chunk_items: Items of one chunk.

    Returns:
        The batch, new or found.

    Raises:
        ArchiveProblem: If there is no image and no row.
        ServiceProblem: If the archive does not answer.
    """
    with Manifest(archive) as manifest:
        return submit_manifest(
            engine, manifest, name=name, model_digest=model_digest, priority=priority, chunk_items=chunk_items
        )


def submit_manifest(
    engine: Engine,
    manifest: Manifest,
    *,
    name: str,
    model_digest: str,
    priority: int = 0,
    chunk_items: int = 256,
    on_items: Callable[[int, int], None] | None = None,
    actor: str = "nobody",
) -> Submitted:
    """Write a staged manifest into the ledger. Idempotent; a transaction a chunk.

    Args:
        engine: The ledger.
        manifest: A staged archive.
        name: What the user calls the batch.
        model_digest: The model that the batch is pinned to.
        priority: Higher goes first.
        chunk_items: Items of one chunk.
        on_items: Told after each chunk how many items are in the ledger, and how many of them have nothing to score.
        actor: Who submits, for the audit trail.

    Returns:
        The batch, new or found.

    Raises:
        ArchiveProblem: If there is no image and no row.
    """
    source = str(manifest.archive.root)
    digest = manifest.digest()
    batch_id, existed = find_batch(engine, digest, model_digest), True
    if batch_id is None:
        discard_stale_loading(engine, source)
        batch_id, existed = _load(engine, manifest, digest, name, model_digest, priority, chunk_items, on_items, actor)
    row = get_batch(engine, batch_id)
    return Submitted(
        batch=batch_id,
        items=row.items,
        chunks=row.chunks,
        existed=existed,
        problems=manifest.problem_counts(),
        ignored=manifest.ignored,
    )


def _load(
    engine: Engine,
    manifest: Manifest,
    digest: str,
    name: str,
    model_digest: str,
    priority: int,
    chunk_items: int,
    on_items: Callable[[int, int], None] | None,
    actor: str,
) -> tuple[int, bool]:
    chunks = _chunks(manifest.items(), chunk_items)
    first = next(chunks, None)
    if first is None:
        raise ArchiveProblem(
            "There is no image in this archive: files ending in jpg, jpeg, png and dcm are looked for, "
            "and DICOM objects without an ending, in all folders below it, and in a PACS objects with pixels. "
            "Check the path."
        )
    source = str(manifest.archive.root)
    batch_id = start_batch(engine, name=name, source=source, model_digest=model_digest, priority=priority)
    loaded = rejected = 0
    for items in chain([first], chunks):
        add_chunk(engine, batch_id, items)
        loaded += len(items)
        rejected += sum(item.rejected is not None for item in items)
        if on_items is not None:
            on_items(loaded, rejected)
    root = manifest.archive.root
    if isinstance(root, DicomWebPlace):
        # What a folder tells by size and time of change, and reading again would tell, is told by identifiers here.
        settle_known(engine, batch_id, root.base)
    opened = finish_loading(engine, batch_id, digest, actor)
    return opened.batch_id, opened.existed


def _chunks(items: Iterator[ItemRow], size: int) -> Iterator[list[ItemRow]]:
    while chunk := list(islice(items, size)):
        yield chunk


def ring_open_chunks(engine: Engine, broker_url: str) -> int:
    """Ring for what is open, so that idle workers start at once; the feeder does the rest.

    Args:
        engine: The ledger.
        broker_url: URL of the Redis server.

    Returns:
        How many chunks were rung.

    Raises:
        BrokerUnavailable: If Redis does not answer; the ledger has everything, and the feeder rings later.
    """
    with Doorbell(broker_url) as doorbell:
        # Asked first: what is noted as rung and was not would wait its quiet time for nothing.
        doorbell.ping()
        return doorbell.ring_open(engine, limit=_FIRST_RING)
