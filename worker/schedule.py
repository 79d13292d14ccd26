"""What beat asks for: a retraining, if there is enough to learn."""

from typing import Final

import structlog

from db.models import active_model
from db.runs import queue_scheduled_run
from worker.child import Child
from worker.contract import RunRequest

_ACTOR: Final = "schedule"

_log = structlog.get_logger()


def queue_retraining(child: Child) -> int | None:
    """Queue a run on the ledger's confirmed diagnoses, from the active model, if enough of them are new.

    Args:
        child: The pool child's state.

    Returns:
        The run's id, or None where one waits already or there is too little to learn.
    """
    settings, active = child.settings, active_model(child.engine)
    request = RunRequest(
        recipe=settings.retrain_recipe,
        parent=None if active is None else active.digest,
        promote=settings.retrain_promote,
    )
    params = request.model_dump(mode="json")
    run = queue_scheduled_run(child.engine, params, _ACTOR, least_labels=settings.retrain_min_labels)
    _log.info("schedule struck", run=run)
    return run
