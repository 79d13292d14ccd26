"""Answering the doorbell: from a message's payload to a chunk that is finished, given back or refused."""

from typing import Any, TypeVar

import structlog
from pydantic import ValidationError
from sqlalchemy import Engine

from db.chunks import Claim, claim_chunk, extend_lease, release_chunk
from db.liveness import is_genuine
from db.session import TRANSIENT_ERRORS, is_transient
from worker.child import Child
from worker.contract import CONTRACT_VERSION, ClaimCheck, RunCheck
from worker.errors import ModelUnavailable
from worker.heartbeat import Heartbeat
from worker.patience import insist
from worker.pictures import PictureStore
from worker.screening import Ending, Report, screen_chunk
from worker.settings import WorkerSettings

#: From so many crashes on, a chunk needs a person's eyes: suspect mode ends a poison image after three.
_ALARMING_CRASHES = 4

_PayloadT = TypeVar("_PayloadT", ClaimCheck, RunCheck)

_log = structlog.get_logger()


def answer(payload: Any, child: Child) -> Ending | None:
    """Do what a message asks, if there is anything to do.

    Args:
        payload: What came over the wire; anything.
        child: The pool child's state.

    Returns:
        How the chunk ended, or None where nothing was claimed or it was left for later.

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
    child.pass_step("after_claim")
    if claim.crashes >= _ALARMING_CRASHES:
        _log.error("chunk keeps killing its workers", chunk=claim.chunk_id, crashes=claim.crashes)
    with chunk_heartbeat(child.engine, claim, child.settings) as heartbeat:
        report = _screen(claim, child, heartbeat)
    if report is None or report.ending is Ending.ARCHIVE_AWAY:
        child.back_off()
        return None if report is None else report.ending
    child.note_success()
    return report.ending


def chunk_heartbeat(engine: Engine, claim: Claim, settings: WorkerSettings) -> Heartbeat:
    """Make the heartbeat of a chunk that was claimed.

    Args:
        engine: The ledger.
        claim: The chunk.
        settings: Lease, heartbeat and stall times.

    Returns:
        The heartbeat, to be used in a `with` statement.
    """
    return Heartbeat(
        lambda: extend_lease(engine, claim.chunk_id, claim.attempt, lease_seconds=settings.lease_seconds),
        every=settings.heartbeat_seconds,
        stall=settings.stall_seconds,
        chunk=claim.chunk_id,
        attempt=claim.attempt,
    )


def _claim(check: ClaimCheck, child: Child) -> Claim | None:
    if child.stopping():
        return None
    if not is_genuine(child.engine, chunk=check.chunk, batch=check.batch, model=check.model):
        _log.warning("message refused", reason="unknown_ids")
        return None
    return claim_chunk(child.engine, check.chunk, worker=child.name, lease_seconds=child.settings.lease_seconds)


def _screen(claim: Claim, child: Child, heartbeat: Heartbeat) -> Report | None:
    try:
        classifier = child.classifier(claim.model_digest)
    except ModelUnavailable:
        _log.exception("model unavailable", model=claim.model_digest, chunk=claim.chunk_id)
        release_chunk(child.engine, claim.chunk_id, claim.attempt, quiet=True)
        return None
    heartbeat.note_progress()
    report = screen_chunk(
        child.engine,
        claim,
        classifier,
        child.settings,
        heartbeat,
        stopping=child.stopping,
        pictures=PictureStore(shelf=child.shelf),
        pass_step=child.pass_step,
    )
    _log.info(
        "chunk left",
        batch=claim.batch_id,
        chunk=claim.chunk_id,
        attempt=claim.attempt,
        crashes=claim.crashes,
        items=len(claim.items),
        ending=report.ending,
        scored=report.scored,
        rejected=report.rejected,
        reused=report.reused,
        seconds=round(report.seconds, 3),
        images_per_second=round(report.scored / report.seconds, 1) if report.seconds else None,
        model=claim.model_digest,
        worker=child.name,
    )
    return report
