"""Screening one chunk in this process, on both databases, with the light classifier."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, select, update

from db.chunks import Claim, claim_chunk, record_results
from db.clock import clock
from db.erasure import purge_batches
from db.health import check_batch
from db.results import iter_report
from db.tables import Batch, Chunk
from tests.light_classifier import LightClassifier
from tests.servers import await_that
from worker.answering import answer
from worker.child import Child
from worker.errors import ModelUnavailable
from worker.heartbeat import chunk_heartbeat
from worker.screening import Crew, Ending, Report, screen_chunk
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from model.classifier import Prediction
    from model.images import DecodedImage
    from model.metadata import MetadataEncoding, PatientMetadata
    from tests.archive import Archive

MODEL = "a" * 64


class WatchedClassifier(LightClassifier):
    """Calls the test at each decode and counts."""

    def __init__(self, on_decode: Callable[[], object] = lambda: None) -> None:
        super().__init__(MODEL)
        self.on_decode = on_decode
        self.decoded = 0

    def decode(self, data: bytes, frame: int | None = None) -> DecodedImage:
        self.decoded += 1
        self.on_decode()
        return super().decode(data, frame)


def claim(archive: Archive, chunk: int, *, lease_seconds: float = 30) -> Claim:
    claimed = claim_chunk(archive.engine, chunk, worker="w1", lease_seconds=lease_seconds)
    assert claimed is not None
    return claimed


def screen(
    archive: Archive,
    claimed: Claim,
    classifier: LightClassifier | None = None,
    *,
    stopping: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Report:
    given = WorkerSettings.model_validate(settings)
    scorer = classifier or WatchedClassifier()
    with chunk_heartbeat(archive.engine, claimed, given) as heartbeat, Crew(given, scorer) as crew:
        return screen_chunk(archive.engine, claimed, scorer, given, heartbeat, crew=crew, stopping=stopping)


def expire(archive: Archive) -> None:
    with archive.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE chunk SET lease_until = lease_until - 3600 WHERE state = 'running'")


def test_every_item_of_a_chunk_gets_its_outcome(archive: Archive) -> None:
    # Given a chunk of forty-two good images, one so bright that it is referred, and a broken one
    rows = [*archive.draw(42), *archive.draw(1, first=250), archive.spoil("broken.jpg", b"\xff\xd8\xffnonsense")]
    batch = archive.load(rows)

    # If it is screened
    report = screen(archive, claim(archive, *archive.chunks(batch)))

    # Then the report and the ledger say the same
    counts = archive.counts(batch)
    assert report.ending is Ending.FINISHED
    assert (report.scored, report.rejected, report.reused) == (43, 1, 0)
    assert (counts.open, counts.done, counts.referred, counts.rejected) == (0, 42, 1, 1)


def test_an_image_this_model_has_seen_is_not_decoded_again(archive: Archive) -> None:
    # Given a batch that is done, and a second one of which five images are new
    first = archive.load(archive.draw(20))
    screen(archive, claim(archive, *archive.chunks(first)))
    second = archive.load(archive.draw(25))
    classifier = WatchedClassifier()

    # If the second is screened
    report = screen(archive, claim(archive, *archive.chunks(second)), classifier)

    # Then five images were decoded
    assert (classifier.decoded, report.scored, report.reused) == (5, 5, 20)
    assert archive.counts(second).done == 25


class PairedClassifier(LightClassifier):
    """Begins its first two batches together, and answers the second one first."""

    batches_at_once = 2

    def __init__(self) -> None:
        super().__init__(MODEL)
        self._both_began = threading.Barrier(2)
        self._second_answered = threading.Event()
        self._begun = itertools.count()

    def classify(self, images: NDArray[np.uint8], patients: Sequence[PatientMetadata]) -> list[Prediction]:
        number = next(self._begun)
        if number < 2:
            self._both_began.wait(timeout=30)
        if number == 0:
            assert self._second_answered.wait(timeout=30)
        predictions = super().classify(images, patients)
        if number == 1:
            self._second_answered.set()
        return predictions


def test_batches_that_are_scored_at_once_leave_each_image_its_own_verdict(archive: Archive) -> None:
    # Given images of a brightness each, and a classifier that takes two batches at a time
    batch = archive.load(archive.draw(40))

    # If they are screened
    report = screen(archive, claim(archive, *archive.chunks(batch)), PairedClassifier())

    # Then each has the score of its own brightness
    found = {row.path: row.malignant_score for row in iter_report(archive.engine, batch)}
    assert report.scored == 40
    assert found == pytest.approx({f"{brightness:03d}.png": brightness / 255 for brightness in range(40)})


@pytest.mark.parametrize(("encoding", "reused"), [("small", 4), ("paper", 0)])
def test_an_image_is_seen_again_where_the_model_can_tell_its_metadata_apart(
    archive: Archive, encoding: MetadataEncoding, reused: int
) -> None:
    # Given the same images of a chest and of an abdomen, which are one site to the default encoding alone
    classifier = WatchedClassifier()
    classifier.metadata_encoding = encoding
    for site in ("chest", "abdomen"):
        batch = archive.load([dataclasses.replace(row, localization=site) for row in archive.draw(4)])

        # If both are screened
        report = screen(archive, claim(archive, *archive.chunks(batch)), classifier)

    # Then the first verdicts serve the second batch only where the model would have seen the same
    assert (report.reused, report.scored) == (reused, 4 - reused)


def test_no_item_pays_for_an_archive_that_is_away(archive: Archive) -> None:
    # Given a chunk whose archive vanishes in the middle
    batch = archive.load(archive.draw(60))
    vanishing = WatchedClassifier(lambda: shutil.rmtree(archive.root, ignore_errors=True))

    # If it is screened
    report = screen(archive, claim(archive, *archive.chunks(batch)), vanishing, decoded_images=16)

    # Then it is given back with no item rejected and no crash charged
    counts = archive.counts(batch)
    assert report.ending is Ending.ARCHIVE_AWAY
    assert (counts.rejected, counts.quarantined) == (0, 0)
    assert archive.number("SELECT count(*) FROM chunk WHERE state = 'open' AND crashes = 0") == 1
    # And it goes on when the archive is back
    archive.draw(60)
    screen(archive, claim(archive, *archive.chunks(batch)))
    assert archive.counts(batch).done == 60


def test_an_archive_is_read_where_this_host_mounts_it(archive: Archive) -> None:
    batch = archive.load(archive.draw(3))
    moved = archive.root.rename(archive.root.with_name("mounted-here"))

    report = screen(archive, claim(archive, *archive.chunks(batch)), archive_roots={str(archive.root): str(moved)})

    assert report.scored == 3


def test_a_worker_that_is_to_stop_records_what_it_did(archive: Archive) -> None:
    # Given a worker that is told to stop in its second batch
    batch = archive.load(archive.draw(100))
    asked = iter([False, True])

    # If it screens
    report = screen(archive, claim(archive, *archive.chunks(batch)), stopping=lambda: next(asked))

    # Then two batches are recorded, and the chunk is open for others
    assert report.ending is Ending.RELEASED
    assert archive.counts(batch).done == 2 * WatchedClassifier().batch_size
    assert len(claim(archive, *archive.chunks(batch)).items) == 100 - archive.counts(batch).done


def test_what_a_stopped_chunk_has_in_the_queue_keeps_no_thread_from_another(archive: Archive) -> None:
    # Given threads that two chunks share, and a worker that is told to stop after the first batch
    batch = archive.load(archive.draw(100))
    given, classifier = WorkerSettings(decode_threads=1), WatchedClassifier()
    claimed = claim(archive, *archive.chunks(batch))
    with chunk_heartbeat(archive.engine, claimed, given) as heartbeat, Crew(given, classifier) as crew:
        # If it has given its chunk back
        screen_chunk(archive.engine, claimed, classifier, given, heartbeat, crew=crew, stopping=lambda: True)

        # Then nothing of it is decoded any more
        decoded = classifier.decoded
        crew.decoders.submit(lambda: None).result()
        assert classifier.decoded == decoded < 100


def test_a_worker_that_is_to_stop_does_so_among_images_that_are_known(archive: Archive) -> None:
    # Given a chunk whose images this model has seen, and a worker that is told to stop at its third
    screen(archive, claim(archive, *archive.chunks(archive.load(archive.draw(20)))))
    batch = archive.load([dataclasses.replace(row, image_id="again") for row in archive.draw(20)])
    asked = iter([False, False, True])

    # If it looks at them
    report = screen(archive, claim(archive, *archive.chunks(batch)), stopping=lambda: next(asked))

    # Then three are recorded, and the chunk is open for others
    assert report.ending is Ending.RELEASED
    assert (archive.counts(batch).done, archive.counts(batch).open) == (3, 17)


def test_what_is_known_is_recorded_in_time(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a chunk whose images this model has seen, and a worker that records at once
    screen(archive, claim(archive, *archive.chunks(archive.load(archive.draw(20)))))
    batch = archive.load([dataclasses.replace(row, image_id="again") for row in archive.draw(20)])
    recorded: list[int] = []

    def record(*arguments: Any, **named: Any) -> int:
        recorded.append(len(named["outcomes"]))
        return record_results(*arguments, **named)

    monkeypatch.setattr("worker.screening.record_results", record)

    # If it looks at them
    screen(archive, claim(archive, *archive.chunks(batch)), record_seconds=1e-9)

    # Then the ledger has each as soon as it is known
    assert recorded == [1] * 20
    assert archive.counts(batch).done == 20


def test_a_verdict_that_is_purged_before_an_image_shares_it_is_given_anew(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a chunk whose images this model has seen, and an old batch of theirs that is purged before it is recorded
    old = archive.load(archive.draw(20))
    screen(archive, claim(archive, *archive.chunks(old)))
    batch = archive.load([dataclasses.replace(row, image_id="again") for row in archive.draw(20)])
    with archive.engine.begin() as connection:
        connection.execute(update(Batch).where(Batch.id == old).values(opened_at=Batch.opened_at - 3 * 86_400))

    def record(*arguments: Any, **named: Any) -> int:
        purge_batches(archive.engine, 2, "officer")
        return record_results(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr("worker.screening.record_results", record)
        report = screen(archive, claim(archive, *archive.chunks(batch)))

    # Then no item has a verdict that is not there, no crash is charged, and the next worker scores all of them
    assert (report.ending, archive.counts(batch).open) == (Ending.RELEASED, 20)
    assert archive.number("SELECT count(*) FROM chunk WHERE state = 'open' AND crashes = 0") == 1
    assert screen(archive, claim(archive, *archive.chunks(batch))).scored == 20
    assert check_batch(archive.engine, batch) == []


def test_a_worker_that_lost_its_lease_writes_nothing(archive: Archive) -> None:
    # Given a worker that another one takes over from while it decodes
    batch = archive.load(archive.draw(40))
    (chunk,) = archive.chunks(batch)
    mine = claim(archive, chunk)
    taken: list[Claim] = []

    def take_over() -> None:
        if not taken:
            expire(archive)
            taken.append(claim(archive, chunk))

    # If it goes on
    report = screen(archive, mine, WatchedClassifier(take_over), decode_threads=1)

    # Then it stops quietly, and the ledger knows nothing of it
    assert report.ending is Ending.LEASE_LOST
    assert archive.counts(batch).open == 40
    assert archive.number("SELECT count(*) FROM result") == 0


def test_after_a_crash_each_item_is_marked_before_it_is_opened(archive: Archive) -> None:
    # Given a chunk on which a worker died
    batch = archive.load(archive.draw(6))
    (chunk,) = archive.chunks(batch)
    claim(archive, chunk)
    expire(archive)
    suspect = claim(archive, chunk)
    seen: list[tuple[int, int]] = []

    def look() -> None:
        marked = archive.number("SELECT suspect_item_id FROM chunk")
        seen.append((marked, archive.number("SELECT count(*) FROM item WHERE state <> 'open'")))

    # If it is screened
    report = screen(archive, suspect, WatchedClassifier(look))

    # Then at each decode the ledger named that item, and had all before it recorded
    assert report.ending is Ending.FINISHED
    assert seen == [(one.item_id, number) for number, one in enumerate(suspect.items)]


def test_a_database_that_is_away_for_a_moment_costs_time_only(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a database that refuses the first two attempts to record
    batch = archive.load(archive.draw(20))
    real = record_results
    refusals = iter([True, True])

    def record(*arguments: Any, **named: Any) -> int:
        if next(refusals, False):
            raise exc.OperationalError("", None, Exception(), connection_invalidated=True)
        return real(*arguments, **named)

    monkeypatch.setattr("worker.screening.record_results", record)

    # If the chunk is screened
    report = screen(archive, claim(archive, *archive.chunks(batch)))

    # Then it is finished
    assert report.ending is Ending.FINISHED
    assert archive.counts(batch).done == 20


def test_a_heartbeat_keeps_a_lease_only_while_there_is_progress(archive: Archive) -> None:
    # Given a chunk under a short lease
    batch = archive.load(archive.draw(1))
    (chunk,) = archive.chunks(batch)
    mine = claim(archive, chunk, lease_seconds=0.6)
    settings = WorkerSettings(lease_seconds=0.6, heartbeat_seconds=0.1, stall_seconds=0.7)

    def ask(what: Any) -> Any:
        with archive.engine.connect() as connection:
            return connection.execute(select(what)).scalar_one()

    first = ask(Chunk.lease_until)
    with chunk_heartbeat(archive.engine, mine, settings) as heartbeat:
        # If there is progress
        def is_extended() -> bool:
            heartbeat.note_progress()
            return bool(ask(Chunk.lease_until) > first + settings.lease_seconds)

        # Then the lease goes on, longer than it was given for
        await_that(is_extended)
        # And if there is none, it runs out
        await_that(lambda: ask(Chunk.lease_until < clock()))


def test_a_chunk_larger_than_what_may_be_in_flight_is_screened_once(archive: Archive) -> None:
    # Given more items than fit in flight
    batch = archive.load(archive.draw(200))

    # If at most four are in flight
    classifier = WatchedClassifier()
    report = screen(archive, claim(archive, *archive.chunks(batch)), classifier, decoded_images=4, decode_threads=3)

    # Then each was decoded once
    assert classifier.decoded == report.scored == 200
    assert archive.counts(batch).done == 200


def child(
    archive: Archive, tmp_path: Path, *, stop: bool = False, classifier: str = "light", window: str | None = None
) -> Child:
    names = {
        "light": "tests.light_classifier:LightClassifier",
        "real": "model.classifier:Classifier",
    }
    return Child(
        settings=WorkerSettings(classifier=names[classifier], window=window),
        engine=archive.engine,
        store=tmp_path / "store",
        node="w1",
        stopping=lambda: stop,
    )


def payload(archive: Archive, batch: int) -> dict[str, Any]:
    (chunk,) = archive.chunks(batch)
    return {"version": 1, "batch": batch, "chunk": chunk, "items": 1, "model": MODEL}


def test_a_message_that_waited_until_the_window_closed_begins_nothing(archive: Archive, tmp_path: Path) -> None:
    # Given a batch as usual, and a window that closed an hour ago
    batch = archive.load(archive.draw(3))
    closed = "-".join(f"{(datetime.now(UTC) + timedelta(hours=hours)):%H:%M}" for hours in (-2, -1))

    # If its message comes now, then it waits for the window
    assert answer(payload(archive, batch), child(archive, tmp_path, window=closed)) is None
    assert archive.counts(batch).open == 3
    # And an urgent one does not
    with archive.engine.begin() as connection:
        connection.execute(update(Batch).values(priority=1))
    assert answer(payload(archive, batch), child(archive, tmp_path, window=closed)) is Ending.FINISHED


def test_a_message_about_a_finished_or_leased_chunk_is_a_no_op(archive: Archive, tmp_path: Path) -> None:
    # Given a chunk that another worker holds
    batch = archive.load(archive.draw(3))
    claim(archive, *archive.chunks(batch))
    worker = child(archive, tmp_path)

    # If it is rung again, while it is held and after its end
    assert answer(payload(archive, batch), worker) is None
    expire(archive)
    assert answer(payload(archive, batch), worker) is Ending.FINISHED
    assert answer(payload(archive, batch), worker) is None

    # Then each item was counted once
    assert archive.counts(batch).done == 3


def test_a_worker_that_is_stopping_claims_nothing(archive: Archive, tmp_path: Path) -> None:
    batch = archive.load(archive.draw(1))

    assert answer(payload(archive, batch), child(archive, tmp_path, stop=True)) is None
    assert archive.number("SELECT attempt FROM chunk") == 0


def test_a_model_that_is_not_in_the_store_costs_no_item_anything(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker whose store is empty
    monkeypatch.setattr(Child, "back_off", lambda _: None)
    batch = archive.load(archive.draw(2))

    # If the chunk is rung
    assert answer(payload(archive, batch), child(archive, tmp_path, classifier="real")) is None

    # Then it is open again and no crash is charged
    assert archive.number("SELECT count(*) FROM chunk WHERE state = 'open' AND crashes = 0") == 1


def test_models_are_kept_by_digest_and_only_two_of_them(archive: Archive, tmp_path: Path) -> None:
    worker = child(archive, tmp_path)

    first = worker.classifier("1" * 64)
    second = worker.classifier("2" * 64)
    assert worker.classifier("1" * 64) is first
    worker.classifier("3" * 64)

    assert worker.classifier("1" * 64) is first
    assert worker.classifier("2" * 64) is not second


def test_a_model_under_another_digest_is_refused(archive: Archive, tmp_path: Path) -> None:
    from unittest.mock import patch

    with (
        patch.object(LightClassifier, "load", return_value=WatchedClassifier()),
        pytest.raises(ModelUnavailable),
    ):
        child(archive, tmp_path).classifier("b" * 64)


def test_a_bug_leaves_what_was_recorded_and_lets_the_lease_run_out(archive: Archive) -> None:
    # Given a chunk on whose images our own code raises
    batch = archive.load(archive.draw(3))

    def stumble() -> None:
        raise RuntimeError("a bug")

    claimed = claim(archive, *archive.chunks(batch))

    # If it is screened
    with pytest.raises(RuntimeError):
        screen(archive, claimed, WatchedClassifier(stumble))

    # Then the chunk is still leased: it is tried again as if the worker had died
    assert archive.number("SELECT count(*) FROM chunk WHERE state = 'running'") == 1
    assert archive.counts(batch).open == 3
