"""The tasks: they take a claim check, hand it on, and hold no rules."""

from typing import Any

import structlog
from celery import shared_task

from worker.contract import SCREEN_CHUNK
from worker.errors import ScreeningFailed
from worker.lifecycle import current_child

_log = structlog.get_logger()


@shared_task(name=SCREEN_CHUNK, Strategy="worker.strategy:strict")
def screen_chunk_task(payload: Any) -> None:
    """Screen the chunk that a claim check stands for.

    Args:
        payload: A `worker.contract.ClaimCheck` as JSON; nothing is believed of it.

    Raises:
        ScreeningFailed: If there is a bug; the chunk's lease runs out and it is tried again.
    """
    from worker.answering import answer

    try:
        answer(payload, current_child())
    except Exception as error:  # noqa: BLE001 - the edge, see below
        # Celery sends an exception's text to Flower, and this one may quote a row or a path.
        _log.exception("screening failed")
        raise ScreeningFailed(type(error).__qualname__) from None
