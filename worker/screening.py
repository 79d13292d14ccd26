"""Screening: one claimed chunk from files to recorded outcomes; knows nothing of Celery."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db.chunks import Claim, Rejected, Scored, mark_suspect, record_results, release_chunk
from db.errors import LeaseLost, MissingResult, SettingsError
from db.evidence import pack_evidence
from db.results import ResultRow, stored_inputs
from model.batches import Batched
from model.classifier import Prediction
from model.errors import ArchiveUnavailable
from model.images import DecodedImage
from model.metadata import MetadataEncoding, PatientMetadata
from worker.failpoints import Step, no_failpoint
from worker.heartbeat import Heartbeat
from worker.patience import insist
from worker.pictures import PictureStore
from worker.pipeline import Arrival, Decoded, Known, Source, stream
from worker.settings import WorkerSettings

T = TypeVar("T")


class Scorer(Batched, Protocol):
    """What screening needs of a classifier; `model.classifier.Classifier` is the real one."""

    digest: str
    engine_name: str
    metadata_encoding: MetadataEncoding
    #: "gpu" or "cpu".
    device: str
    #: What it computes in.
    precision: str

    def memory_in_use(self) -> int | None:
        """Say how many bytes of a GPU it uses; None on a CPU."""

    def decode(self, data: bytes, frame: int | None = None) -> DecodedImage:
        """Decode a file, or one frame of it, to `(size, size, 3)` uint8; any thread may call it."""

    def classify(self, images: NDArray[np.uint8], patients: Sequence[PatientMetadata]) -> list[Prediction]:
        """Score `(n, size, size, 3)` uint8 images; threads may call it at once."""


class Crew:
    """Threads that read and decode, and threads that score; to be used in a `with` statement.

    Args:
        settings: Say how many decode.
        classifier: Says how many score.
    """

    def __init__(self, settings: WorkerSettings, classifier: Batched) -> None:
        self.decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self.network = ThreadPoolExecutor(classifier.batches_at_once, thread_name_prefix="network")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.decoders.shutdown()
        self.network.shutdown()


class Ending(StrEnum):
    """How work on a chunk ended."""

    #: Every item has an outcome.
    FINISHED = "finished"
    #: The worker is to stop: what was done is recorded, the rest is given back.
    RELEASED = "released"
    #: The archive does not answer: the same, and the feeder waits a little.
    ARCHIVE_AWAY = "archive_away"
    #: Another worker has it, or it was cancelled; nothing of this attempt was written since.
    LEASE_LOST = "lease_lost"


@dataclass(slots=True, kw_only=True)
class Report:
    """What became of a chunk; counts only."""

    ending: Ending = Ending.FINISHED
    scored: int = 0
    rejected: int = 0
    #: Images that this model had seen before.
    reused: int = 0
    seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class Screening:
    """One attempt at one chunk.

    Args:
        engine: The ledger.
        claim: The chunk.
        classifier: The model that the chunk is pinned to.
        settings: The worker's.
        heartbeat: Keeps the lease.
        crew: Its threads.
        stopping: Whether the worker is to stop soon.
        pictures: Where images above the operating point and referred ones are drawn; None draws nothing.
        pass_step: Called at each named step.
        near_end: Called once the last image is on its way; not of a chunk on which a worker died.
    """

    engine: Engine
    claim: Claim
    classifier: Scorer
    settings: WorkerSettings
    heartbeat: Heartbeat
    crew: Crew
    stopping: Callable[[], bool]
    pictures: PictureStore | None = None
    pass_step: Callable[[Step], None] = no_failpoint
    near_end: Callable[[], None] = lambda: None
    report: Report = field(default_factory=Report)
    _outcomes: list[Scored | Rejected] = field(default_factory=list)
    _waiting: list[Decoded] = field(default_factory=list)
    _scoring: deque[tuple[list[Decoded], Future[list[Prediction]]]] = field(default_factory=deque)
    _recorded_at: float = field(default_factory=time.monotonic)

    def run(self) -> Report:
        """Screen the chunk.

        Returns:
            How it ended, with counts.

        Raises:
            Exception: A bug, or a database that stayed away: the lease runs out and the chunk is rung again.
        """
        begun = time.monotonic()
        try:
            self.report.ending = self._work()
        except LeaseLost:
            self.report.ending = Ending.LEASE_LOST
            self._settle_pictures()
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _work(self) -> Ending:
        try:
            source = self._source()
            done = self._one_by_one(source) if self.claim.crashes else self._pipelined(source)
        except ArchiveUnavailable:
            # Says nothing about any item, so no item pays for it.
            self._give_back(quiet=True)
            return Ending.ARCHIVE_AWAY
        except MissingResult:
            # A purge erased the verdict that an image here was to share; whoever has the chunk next scores it anew.
            self._outcomes = []
            self._settle_pictures()
            self._give_back(quiet=False)
            return Ending.RELEASED
        if not done:
            self._give_back(quiet=False)
            return Ending.RELEASED
        return Ending.FINISHED

    def _source(self) -> Source:
        try:
            root = self.settings.archive_root(self.claim.source)
        except SettingsError as error:
            # Another host may have what it takes.
            raise ArchiveUnavailable(str(error)) from None
        if root is None:
            raise ArchiveUnavailable("This host does not know where the archive is; see WORKER_ARCHIVE_ROOTS.")
        return Source(
            root=root,
            max_image_bytes=self.settings.max_image_bytes,
            decode=self.classifier.decode,
            encoding=self.classifier.metadata_encoding,
            stored=lambda digests: self._insist(
                lambda: stored_inputs(self.engine, self.claim.model_digest, digests) if digests else frozenset()
            ),
            note_progress=self.heartbeat.note_progress,
        )

    def _pipelined(self, source: Source) -> bool:
        at_once = self.classifier.batches_at_once
        in_flight = max(self.settings.decoded_images, 2 * self.classifier.batch_size)
        arrivals = stream(
            source, self.claim.items, decoders=self.crew.decoders, in_flight=in_flight, on_last=self.near_end
        )
        with closing(arrivals):
            for arrival in arrivals:
                self._take(arrival)
                if len(self._waiting) >= self.classifier.batch_size:
                    self._begin()
                    self._finish(at_once)
                elif isinstance(arrival, Decoded):
                    continue
                # Here too where no batch ever fills, as every image is known or rejected.
                self.heartbeat.check()
                if self.stopping():
                    return False
                if time.monotonic() - self._recorded_at > self.settings.record_seconds:
                    self._record()
            self._begin()
            self._finish(0)
        self._record()
        return True

    def _one_by_one(self, source: Source) -> bool:
        # A worker died on this chunk: each item is named before it is opened and recorded before the next one.
        for item in self.claim.items:
            if self.stopping():
                return False
            self._mark(item.item_id)
            self._take(source.arrive(item))
            self._begin()
            self._finish(0)
            self._record()
        return True

    def _mark(self, item_id: int) -> None:
        self._insist(lambda: mark_suspect(self.engine, self.claim.chunk_id, self.claim.attempt, item_id))

    def _take(self, arrival: Arrival) -> None:
        if isinstance(arrival, Decoded):
            self._waiting.append(arrival)
        elif isinstance(arrival, Known):
            self.report.reused += 1
            self._outcomes.append(
                Scored(
                    item_id=arrival.item.item_id,
                    image_digest=arrival.image_digest,
                    input_digest=arrival.input_digest,
                    result=None,
                )
            )
        else:
            self.report.rejected += 1
            self._outcomes.append(arrival)

    def _begin(self) -> None:
        self.heartbeat.check()
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._scoring.append((waiting, self.crew.network.submit(self._score, waiting)))

    def _score(self, waiting: Sequence[Decoded]) -> list[Prediction]:
        images = np.stack([one.image.pixels for one in waiting])
        return self.classifier.classify(images, [one.patient for one in waiting])

    def _finish(self, most: int) -> None:
        """Take answers until so many batches at most are with the network."""
        while len(self._scoring) > most:
            waiting, answer = self._scoring.popleft()
            predictions = answer.result()
            self.heartbeat.note_progress()
            for one, prediction in zip(waiting, predictions, strict=True):
                self._outcomes.append(self._scored(one, prediction))
            self.report.scored += len(waiting)
            self.pass_step("after_predict")

    def _settle_pictures(self) -> None:
        # An item that was erased while we held it has no verdict, and nothing that was drawn of it may stay.
        if self.pictures is None or not (drawn := self.pictures.unsettled):
            return
        recorded = self._insist(lambda: stored_inputs(self.engine, self.claim.model_digest, drawn))
        self.pictures.settle(recorded)

    def _scored(self, one: Decoded, prediction: Prediction) -> Scored:
        if self.pictures is not None and (prediction.prioritised or prediction.referred):
            self.pictures.draw(one.input_digest, one.image)
        evidence = prediction.evidence
        row = ResultRow(
            input_digest=one.input_digest,
            model_digest=self.claim.model_digest,
            probabilities=prediction.probabilities,
            diagnosis=prediction.diagnosis,
            confidence=prediction.confidence,
            malignant_score=prediction.malignant_score,
            distance=prediction.distance,
            referred=prediction.referred,
            refer_reason=prediction.refer_reason,
            engine=self.classifier.engine_name,
            evidence=None if evidence is None else pack_evidence(evidence.tolist()),
        )
        return Scored(
            item_id=one.item.item_id, image_digest=one.image_digest, input_digest=one.input_digest, result=row
        )

    def _record(self) -> None:
        if not self._outcomes:
            return
        if self.pictures is not None:
            # Before the verdict is final, so that erasing it finds whatever was drawn.
            self.pictures.await_drawn()
        self._insist(
            lambda: record_results(
                self.engine,
                self.claim.chunk_id,
                self.claim.attempt,
                model_digest=self.claim.model_digest,
                outcomes=self._outcomes,
            )
        )
        self._outcomes = []
        self._recorded_at = time.monotonic()
        self._settle_pictures()
        self.heartbeat.note_progress()
        self.pass_step("after_commit")

    def _give_back(self, *, quiet: bool) -> None:
        # What the network has in hand is worth keeping, however the work ends.
        self._finish(0)
        self._record()
        self._insist(lambda: release_chunk(self.engine, self.claim.chunk_id, self.claim.attempt, quiet=quiet))

    def _insist(self, call: Callable[[], T]) -> T:
        # Nobody can take the chunk while the database is away, and afterwards the fence decides; so it is
        # worth trying for as long as a stalled worker is given.
        return insist(call, seconds=self.settings.stall_seconds, until=lambda: self.heartbeat.lost)


def screen_chunk(
    engine: Engine,
    claim: Claim,
    classifier: Scorer,
    settings: WorkerSettings,
    heartbeat: Heartbeat,
    *,
    crew: Crew,
    stopping: Callable[[], bool],
    pictures: PictureStore | None = None,
    pass_step: Callable[[Step], None] = no_failpoint,
    near_end: Callable[[], None] = lambda: None,
) -> Report:
    """Screen a claimed chunk under a running heartbeat.

    Args:
        engine: The ledger.
        claim: The chunk.
        classifier: The model that the chunk is pinned to.
        settings: The worker's.
        heartbeat: Keeps the lease; the caller has started it.
        crew: Threads, which other chunks may share.
        stopping: Whether the worker is to stop soon; asked after every batch, and every image without one.
        pictures: Where images above the operating point and referred ones are drawn; None draws nothing.
        pass_step: Called at each named step.
        near_end: Called once the last image is on its way; not of a chunk on which a worker died.

    Returns:
        How it ended, with counts.

    Raises:
        Exception: A bug, or a database that stayed away: the lease runs out and the chunk is rung again.
    """
    return Screening(
        engine=engine,
        claim=claim,
        classifier=classifier,
        settings=settings,
        heartbeat=heartbeat,
        crew=crew,
        stopping=stopping,
        pictures=pictures,
        pass_step=pass_step,
        near_end=near_end,
    ).run()
