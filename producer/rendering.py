"""Rendering: has workers draw the images of a batch that have no picture yet, and waits for them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine

from db.batches import BatchRow
from db.pictures import THUMBS, scored_inputs
from producer.errors import ServiceProblem
from worker.contract import CONTRACT_VERSION, RENDERING_QUEUE, ClaimCheck
from worker.doorbell import Doorbell
from worker.errors import BrokerUnavailable
from worker.shelf import Shelf

#: Seconds between two looks at the store.
_LOOK_SECONDS: Final = 1.0

#: No picture and no message in the queue for so long, seconds: what is left cannot be drawn. A chunk in a worker's
#: hands gives pictures all the time.
_QUIET_SECONDS: Final = 20.0

#: No picture for so long while messages wait, seconds: nobody listens.
_DEAF_SECONDS: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Undrawn:
    """Scored inputs of a batch without a thumbnail, by chunk."""

    chunks: dict[int, list[str]]

    @property
    def count(self) -> int:
        """How many."""
        return sum(map(len, self.chunks.values()))


def find_undrawn(engine: Engine, batch_id: int, shelf: Shelf) -> Undrawn:
    """Compare a batch's scored inputs with the store; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        shelf: Of the artifact store.

    Returns:
        What has no thumbnail.
    """
    drawn = _drawn(shelf)
    found = {
        chunk: [one for one in inputs if one not in drawn] for chunk, inputs in scored_inputs(engine, batch_id).items()
    }
    return Undrawn(chunks={chunk: inputs for chunk, inputs in found.items() if inputs})


def ring_undrawn(broker_url: str, batch: BatchRow, undrawn: Undrawn) -> None:
    """Queue a rendering task a chunk.

    Args:
        broker_url: URL of Redis.
        batch: The batch.
        undrawn: What is to be drawn.

    Raises:
        ServiceProblem: If Redis does not take it.
    """
    try:
        with Doorbell(broker_url) as doorbell:
            for chunk, inputs in undrawn.chunks.items():
                doorbell.ring_rendering(
                    ClaimCheck(
                        version=CONTRACT_VERSION,
                        batch=batch.id,
                        chunk=chunk,
                        items=len(inputs),
                        model=batch.model_digest,
                    )
                )
    except BrokerUnavailable as error:
        raise ServiceProblem(f"{error} Run the command again; what is drawn is not drawn twice.") from error


def await_drawn(
    broker_url: str,
    undrawn: Undrawn,
    shelf: Shelf,
    *,
    keep_running: Callable[[], None],
    on_drawn: Callable[[int], object],
) -> int:
    """Wait until everything is drawn, or nothing more comes.

    Args:
        broker_url: URL of Redis.
        undrawn: What was asked for.
        shelf: Of the artifact store.
        keep_running: Called at every look.
        on_drawn: Told how many are drawn.

    Returns:
        How many are not.
    """
    wanted = {one for inputs in undrawn.chunks.values() for one in inputs}
    left, changed = len(wanted), time.monotonic()
    with Doorbell(broker_url) as doorbell:
        while left:
            keep_running()
            time.sleep(_LOOK_SECONDS)
            now_left = len(wanted - _drawn(shelf))
            if now_left != left:
                left, changed = now_left, time.monotonic()
                on_drawn(len(wanted) - left)
            quiet = time.monotonic() - changed
            if quiet > (_DEAF_SECONDS if _waits(doorbell) else _QUIET_SECONDS):
                break
    return left


def _waits(doorbell: Doorbell) -> bool:
    try:
        return doorbell.queue_depth(RENDERING_QUEUE) > 0
    except BrokerUnavailable:
        return True


def _drawn(shelf: Shelf) -> set[str]:
    return {name for name, _ in shelf.names(THUMBS)}
