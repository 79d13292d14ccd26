"""The tasks: they take a claim check, hand it on, and hold no rules."""

from collections.abc import Callable
from typing import Any

import structlog
from celery import shared_task

from worker.contract import QUEUE_RETRAINING, RENDER_CHUNK, SCREEN_CHUNK, TRAIN_MODEL
from worker.errors import TaskFailed
from worker.lifecycle import current_child, giving_back_first, showing_life

_log = structlog.get_logger()


@shared_task(name=SCREEN_CHUNK, Strategy="worker.strategy:strict")
def screen_chunk_task(payload: Any) -> None:
    """Screen the chunk that a claim check stands for.

    Args:
        payload: A `worker.contract.ClaimCheck` as JSON; nothing is believed of it.

    Raises:
        TaskFailed: If there is a bug; the chunk's lease runs out and it is tried again.
    """
    from worker.answering import answer

    _run("screening", lambda: answer(payload, current_child()))


@shared_task(name=RENDER_CHUNK, Strategy="worker.strategy:strict")
def render_chunk_task(payload: Any) -> None:
    """Draw the scored images of a chunk that have no thumbnail yet.

    Args:
        payload: A `worker.contract.ClaimCheck` as JSON; nothing is believed of it.

    Raises:
        TaskFailed: If there is a bug; whoever wants the pictures asks again.
    """
    from worker.rendering import answer_rendering

    _run("rendering", lambda: answer_rendering(payload, current_child()))


# Acknowledged early: a run of hours would come again after the visibility timeout. The feeder rings for what is left.
@shared_task(name=TRAIN_MODEL, acks_late=False, Strategy="worker.strategy:strict")
def train_model_task(payload: Any) -> None:
    """Work on the training run that a message names.

    Args:
        payload: A `worker.contract.RunCheck` as JSON; nothing is believed of it.

    Raises:
        TaskFailed: If there is a bug, or a lack of memory or disk; the run's lease runs out and it is tried again.
    """
    from worker.retraining import answer_run

    _run("training", lambda: answer_run(payload, current_child()))


@shared_task(name=QUEUE_RETRAINING, acks_late=False, Strategy="worker.strategy:strict")
def queue_retraining_task() -> None:
    """Queue a training run as the schedule wants it, if there is enough to learn.

    Raises:
        TaskFailed: If the ledger is away; the schedule comes again.
    """
    from worker.schedule import queue_retraining

    _run("the schedule", lambda: queue_retraining(current_child()))


def _run(what: str, work: Callable[[], object]) -> None:
    try:
        with giving_back_first(), showing_life():
            work()
    except Exception as error:  # noqa: BLE001 - the edge, see below
        # Celery sends an exception's text to Flower, and this one may quote a row or a path.
        _log.exception("task failed", task=what)
        raise TaskFailed(type(error).__qualname__) from None
