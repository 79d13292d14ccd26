"""Answering the doorbell: from a message's payload to a chunk that is finished, given back or refused."""

from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError

from db.chunks import Claim, claim_chunk
from db.liveness import is_genuine
from db.session import TRANSIENT_ERRORS, is_transient
from worker.child import Child
from worker.contract import CONTRACT_VERSION, ClaimCheck, RunCheck
from worker.patience import insist
from worker.relay import Relay, claim_another
from worker.screening import Ending

_PayloadT = TypeVar("_PayloadT", ClaimCheck, RunCheck)

_log = structlog.get_logger()


def answer(payload: Any, child: Child) -> Ending | None:
    """Do what a message asks, if there is anything to do.

    Args:
        payload: What came over the wire; anything.
        child: The pool child's state.

    Returns:
        How the chunk ended, or the one that was claimed in its place; None where nothing was claimed or it was left
        for later.

    Raises:
        Exception: A bug; the chunk's lease runs out and counts as a crash.
    """
    check = read_payload(payload, ClaimCheck)
    if check is None:
        return None
    try:
        return _answer(check, child)
    except TRANSIENT_ERRORS as error:
        if not is_transient(error):
            raise
        # The message may go: the ledger has the chunk, and the feeder rings once the database is back.
        _log.exception("database stayed away", chunk=check.chunk, batch=check.batch)
        return None


def read_payload(payload: Any, kind: type[_PayloadT]) -> _PayloadT | None:
    """Check a payload's form.

    Args:
        payload: What came over the wire.
        kind: What it should be.

    Returns:
        The payload, or None where it is newer than this program or nothing of the kind.
    """
    version = payload.get("version") if isinstance(payload, dict) else None
    if type(version) is int and version > CONTRACT_VERSION:
        _log.warning("message left to newer workers", reason="newer_version", version=version)
        return None
    try:
        return kind.model_validate(payload)
    except ValidationError:
        _log.warning("message refused", reason="malformed")
        return None


def _answer(check: ClaimCheck, child: Child) -> Ending | None:
    claim = insist(lambda: _claim(check, child), seconds=child.settings.stall_seconds, until=child.stopping)
    if claim is None:
        return None
    child.note_life(busy=True, leased=True)
    endings = Relay(child).run(claim)
    child.note_life(busy=True)
    if any(ending is None or ending is Ending.ARCHIVE_AWAY for ending in endings):
        child.back_off()
    else:
        child.note_success()
    return endings[0]


def _claim(check: ClaimCheck, child: Child) -> Claim | None:
    if child.stopping():
        return None
    if not is_genuine(child.engine, chunk=check.chunk, batch=check.batch, model=check.model):
        _log.warning("message refused", reason="unknown_ids")
        return None
    mine = claim_chunk(
        child.engine,
        check.chunk,
        worker=child.name,
        lease_seconds=child.settings.lease_seconds,
        # The message may have waited until the window was closed.
        least_priority=child.settings.least_priority(datetime.now(UTC)),
    )
    # Where a worker was here before its message, others of the batch still wait.
    return mine or claim_another(child, check.batch)
