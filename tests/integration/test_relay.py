"""Chunks that a worker takes one after another on one message, on both databases, with the light classifier."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.archive import MODEL
from tests.light_classifier import LightClassifier
from worker.answering import answer
from worker.child import Child
from worker.screening import Ending
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from model.classifier import Prediction
    from model.images import DecodedImage
    from model.metadata import PatientMetadata
    from tests.archive import Archive


class GuidedClassifier(LightClassifier):
    """Tells the test of each image that it decodes, by its brightness, and of each batch that it scores."""

    def __init__(self, on_decode: Callable[[int], object], on_batch: Callable[[], object]) -> None:
        super().__init__(MODEL)
        self._on_decode, self._on_batch = on_decode, on_batch

    def decode(self, data: bytes, frame: int | None = None) -> DecodedImage:
        image = super().decode(data, frame)
        self._on_decode(int(image.pixels.mean()))
        return image

    def classify(self, images: NDArray[np.uint8], patients: Sequence[PatientMetadata]) -> list[Prediction]:
        self._on_batch()
        return super().classify(images, patients)


def nothing(*_: object) -> None:
    """Do nothing."""


@pytest.fixture
def work(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ending | None]:
    """Answer a message about a chunk, as a worker that decodes and scores under the test's eyes."""

    def answer_one(
        batch: int,
        chunk: int,
        on_decode: Callable[[int], object] = nothing,
        on_batch: Callable[[], object] = nothing,
        stopping: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> Ending | None:
        guided = GuidedClassifier(on_decode, on_batch)
        monkeypatch.setattr(LightClassifier, "load", lambda *_, **__: guided)
        child = Child(
            settings=WorkerSettings(classifier="tests.light_classifier:LightClassifier", **settings),
            engine=archive.engine,
            store=tmp_path / "store",
            node="w1",
            stopping=stopping,
        )
        return answer({"version": 1, "batch": batch, "chunk": chunk, "items": 1, "model": MODEL}, child)

    return answer_one


def three_chunks(archive: Archive) -> tuple[int, list[int]]:
    """Open a batch of three chunks of four images, of brightness 0 to 3, 100 to 103 and 200 to 203."""
    batch = archive.load(*(archive.draw(4, first=first) for first in (0, 100, 200)))
    return batch, archive.chunks(batch)


def test_one_message_is_enough_for_a_whole_batch(archive: Archive, work: Callable[..., Ending | None]) -> None:
    batch, chunks = three_chunks(archive)

    assert work(batch, chunks[0]) is Ending.FINISHED

    assert archive.counts(batch).open == 0
    assert archive.number("SELECT max(attempt) FROM chunk") == 1


def test_a_chunk_is_begun_while_the_last_images_of_the_one_before_are_scored(
    archive: Archive, work: Callable[..., Ending | None]
) -> None:
    # Given a network that holds the first chunk until an image of the second is decoded
    batch, chunks = three_chunks(archive)
    ahead = threading.Event()
    recorded_before: list[int] = []

    def note(brightness: int) -> None:
        if brightness == 100:
            recorded_before.append(archive.number("SELECT count(*) FROM result"))
            ahead.set()

    # If the first one is rung for
    ending = work(batch, chunks[0], on_decode=note, on_batch=lambda: ahead.wait(timeout=30))

    # Then none waits for the other
    assert ending is Ending.FINISHED
    assert recorded_before == [0]
    assert archive.counts(batch).open == 0


def test_a_message_that_comes_too_late_serves_a_chunk_that_waits(
    archive: Archive, work: Callable[..., Ending | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that may begin no second chunk on one message
    monkeypatch.setattr("worker.relay._PART_OF_LIMIT", 0)
    batch, chunks = three_chunks(archive)

    # If the same chunk is rung for three times
    for done in (4, 8, 12):
        assert work(batch, chunks[0]) is Ending.FINISHED
        # Then each message serves one chunk
        assert archive.counts(batch).done == done
    # And one more serves nobody
    assert work(batch, chunks[0]) is None


def test_a_worker_that_is_to_stop_gives_both_of_its_chunks_back(
    archive: Archive, work: Callable[..., Ending | None]
) -> None:
    # Given a worker that is told to stop when it has begun its second chunk
    batch = archive.load(archive.draw(40), archive.draw(40, first=100), archive.draw(4, first=200))
    told = threading.Event()

    def note(brightness: int) -> None:
        if brightness >= 100:
            told.set()

    # If the network does not go on before
    ending = work(
        batch, archive.chunks(batch)[0], on_decode=note, on_batch=lambda: told.wait(timeout=30), stopping=told.is_set
    )

    # Then both are open for others, no crash is charged, and the third was not begun
    assert ending is Ending.RELEASED
    assert archive.number("SELECT count(*) FROM chunk WHERE state = 'open' AND crashes = 0") == 3
    assert archive.number("SELECT sum(attempt) FROM chunk") == 2


def test_an_archive_that_goes_away_ends_the_relay(
    archive: Archive, work: Callable[..., Ending | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an archive that vanishes with the first image of the second chunk
    setbacks: list[Child] = []

    def note_setback(child: Child) -> None:
        setbacks.append(child)

    monkeypatch.setattr(Child, "back_off", note_setback)
    batch = archive.load(archive.draw(4), archive.draw(40, first=100), archive.draw(4, first=200))

    def note(brightness: int) -> None:
        if brightness >= 100 and archive.root.exists():
            archive.root.rename(archive.root.with_name("away"))

    # If the first is rung for
    ending = work(batch, archive.chunks(batch)[0], on_decode=note, decode_threads=1, decoded_images=4)

    # Then the first is done, and of the others no item pays for it
    counts = archive.counts(batch)
    assert ending is Ending.FINISHED
    assert counts.done >= 4
    assert counts.rejected == counts.quarantined == 0
    assert archive.number("SELECT count(*) FROM chunk WHERE state = 'open' AND crashes = 0") == 2
    assert len(setbacks) == 1


def test_a_bug_in_one_chunk_costs_the_other_nothing(archive: Archive, work: Callable[..., Ending | None]) -> None:
    # Given a bug that the second chunk runs into, while the first is with the network
    batch, chunks = three_chunks(archive)
    stumbled = threading.Event()

    def stumble(brightness: int) -> None:
        if brightness >= 100:
            stumbled.set()
            raise RuntimeError("a bug")

    # If the first is rung for
    with pytest.raises(RuntimeError):
        work(batch, chunks[0], on_decode=stumble, on_batch=lambda: stumbled.wait(timeout=30))

    # Then it is done; the second is tried again when its lease has run out, as if the worker had died on it
    assert archive.counts(batch).done == 4
    with archive.engine.connect() as connection:
        states = connection.exec_driver_sql("SELECT state FROM chunk ORDER BY id").scalars().all()
    assert states == ["done", "running", "open"]
