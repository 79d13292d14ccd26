"""The relay: chunks of a batch one after another, each begun while the last images of the one before are scored."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event
from typing import Final

import structlog

from db.chunks import Claim, claim_next, release_chunk
from db.session import TRANSIENT_ERRORS, is_transient
from worker.child import Child
from worker.errors import ModelUnavailable
from worker.heartbeat import chunk_heartbeat
from worker.pictures import PictureStore
from worker.screening import Crew, Ending, Report, Scorer, screen_chunk

#: The part of the hard limit after which no further chunk is begun. What one chunk took until then the next will take
#: too, more or less, so that a message is answered well within the limit; a chunk that takes longer is the last.
_PART_OF_LIMIT: Final = 1 / 8

#: From so many crashes on, a chunk needs a person's eyes: suspect mode ends a poison image after three.
_ALARMING_CRASHES: Final = 4

_log = structlog.get_logger()


def claim_another(child: Child, batch_id: int) -> Claim | None:
    """Claim the chunk of a batch that waits first, without a message for it.

    Args:
        child: The pool child's state.
        batch_id: The batch.

    Returns:
        The claim, or None where none waits, something more urgent does, or the ledger does not answer.
    """
    settings = child.settings
    try:
        return claim_next(
            child.engine,
            batch_id,
            worker=child.name,
            lease_seconds=settings.lease_seconds,
            least_priority=settings.least_priority(datetime.now(UTC)),
        )
    except TRANSIENT_ERRORS as error:
        if not is_transient(error):
            raise
        # It has a message, or will have one.
        return None


@dataclass(frozen=True, slots=True)
class _Leg:
    """A chunk in hand."""

    ending: Future[Ending | None]
    #: Its last image is on its way, or it has ended.
    near_end: Event

    def goes_well(self) -> bool:
        if not self.ending.done():
            return True
        return self.ending.exception() is None and self.ending.result() is Ending.FINISHED


@dataclass(slots=True)
class Relay:
    """Screens a chunk and those of its batch that wait, two at a time at most.

    Without it the cores would be idle at each chunk's end: while the last batches are with the network, while the
    ledger takes the outcomes, and until the next message is there.

    Args:
        child: The pool child's state.
    """

    child: Child
    _begun: float = field(default_factory=time.monotonic)
    _crew: Crew | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def run(self, claim: Claim) -> list[Ending | None]:
        """Screen from this chunk on, until none waits or it is time for another message.

        Args:
            claim: The first chunk.

        Returns:
            How each ended; None where its model was not to be had.

        Raises:
            Exception: A bug; the chunk's lease runs out and counts as a crash.
        """
        endings: list[Ending | None] = []
        # The lanes end before the crew does.
        with self._stack, ThreadPoolExecutor(2, thread_name_prefix="chunk") as lanes:
            legs = deque([self._begin(claim, lanes)])
            while legs:
                leg = legs.popleft()
                leg.near_end.wait()
                following = self._follow(claim.batch_id) if leg.goes_well() else None
                if following is not None:
                    legs.append(self._begin(following, lanes))
                endings.append(leg.ending.result())
        return endings

    def _follow(self, batch_id: int) -> Claim | None:
        limit = self.child.settings.hard_limit_seconds * _PART_OF_LIMIT
        if self.child.stopping() or time.monotonic() - self._begun > limit:
            return None
        return claim_another(self.child, batch_id)

    def _begin(self, claim: Claim, lanes: ThreadPoolExecutor) -> _Leg:
        self.child.pass_step("after_claim")
        if claim.crashes >= _ALARMING_CRASHES:
            _log.error("chunk keeps killing its workers", chunk=claim.chunk_id, crashes=claim.crashes)
        near_end = Event()
        leg = _Leg(lanes.submit(self._screen, claim, near_end), near_end)
        leg.ending.add_done_callback(lambda _: near_end.set())
        return leg

    def _screen(self, claim: Claim, near_end: Event) -> Ending | None:
        child = self.child
        with chunk_heartbeat(child.engine, claim, child.settings) as heartbeat:
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
                crew=self._crew_for(classifier),
                stopping=child.stopping,
                pictures=PictureStore(shelf=child.shelf),
                pass_step=child.pass_step,
                near_end=near_end.set,
            )
        _log_report(child, claim, report)
        return report.ending

    def _crew_for(self, classifier: Scorer) -> Crew:
        # The second leg begins when the first has its crew, and needs the same: a batch is pinned to one model.
        if self._crew is None:
            self._crew = self._stack.enter_context(Crew(self.child.settings, classifier))
        return self._crew


def _log_report(child: Child, claim: Claim, report: Report) -> None:
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
        model=claim.model_digest,
        worker=child.name,
    )
