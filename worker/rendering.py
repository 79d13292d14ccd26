"""Rendering: draws the scored images of a chunk that have no picture yet; writes nothing into the ledger."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from db.liveness import is_genuine
from db.pictures import ScoredItem, inputs_with_result, scored_items
from model.errors import ArchiveUnavailable, RejectedImage
from model.images import DecodedImage, ObjectRoot, read_image_bytes
from worker.answering import read_payload
from worker.child import Child
from worker.contract import ClaimCheck
from worker.errors import ModelUnavailable
from worker.patience import insist
from worker.pictures import PictureStore
from worker.screening import Scorer

_log = structlog.get_logger()


def answer_rendering(payload: Any, child: Child) -> int:
    """Draw what a message asks for. Idempotent, and no lease is needed: the same image gives the same picture.

    Args:
        payload: What came over the wire; anything.
        child: The pool child's state.

    Returns:
        How many images were drawn.

    Raises:
        Exception: A bug, or a database that stayed away; whoever wants the pictures asks again.
    """
    check = read_payload(payload, ClaimCheck)
    if check is None:
        return 0
    if not insist(
        lambda: is_genuine(child.engine, chunk=check.chunk, batch=check.batch, model=check.model),
        seconds=child.settings.stall_seconds,
        until=child.stopping,
    ):
        _log.warning("message refused", reason="unknown_ids")
        return 0
    try:
        return _draw_chunk(check, child)
    except (ArchiveUnavailable, ModelUnavailable) as error:
        _log.warning("chunk not drawn", chunk=check.chunk, batch=check.batch, error=type(error).__name__)
        return 0


def _draw_chunk(check: ClaimCheck, child: Child) -> int:
    pictures = PictureStore(shelf=child.shelf)
    source, items = scored_items(child.engine, check.chunk)
    waiting = [item for item in items if not pictures.has_thumbnail(item.input_digest)]
    root = child.settings.archive_root(source)
    if root is None:
        raise ArchiveUnavailable("This host does not know where the archive is; see WORKER_ARCHIVE_ROOTS.")
    scorer, drawn = child.classifier(check.model), 0
    size = scorer.batch_size * scorer.batches_at_once
    for start in range(0, len(waiting), size):
        if child.stopping():
            break
        with ThreadPoolExecutor(child.settings.decode_threads, thread_name_prefix="decode") as pool:
            some = pool.map(
                lambda item: _decode(root, item, scorer, child.settings.max_image_bytes), waiting[start : start + size]
            )
        for input_digest, image in filter(None, some):
            pictures.draw(input_digest, image)
            drawn += 1
        # Erased in the meantime, perhaps: then nothing of it may stay.
        pictures.settle(inputs_with_result(child.engine, pictures.unsettled))
    _log.info("chunk drawn", batch=check.batch, chunk=check.chunk, items=drawn, model=check.model, worker=child.name)
    return drawn


def _decode(
    root: Path | ObjectRoot, item: ScoredItem, scorer: Scorer, max_bytes: int
) -> tuple[str, DecodedImage] | None:
    try:
        data = read_image_bytes(root, item.path, max_bytes=max_bytes)
        if hashlib.sha256(data).hexdigest() != item.image_digest:
            # Another image than the one that was scored must not stand beside its verdict.
            return None
        return item.input_digest, scorer.decode(data, item.frame)
    except RejectedImage:
        return None
