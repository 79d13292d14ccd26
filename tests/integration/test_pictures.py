"""What a worker draws while it screens and when it is asked to, and that erased patients leave no picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import text

from db.chunks import claim_chunk
from db.erasure import forget_patient
from db.evidence import unpack_evidence
from db.pictures import scored_inputs, thumb_path
from tests.archive import MODEL, Archive
from tests.light_classifier import LightClassifier
from tests.stack import Stack
from worker.contract import CONTRACT_VERSION, RENDERING_QUEUE, ClaimCheck
from worker.doorbell import Doorbell
from worker.heartbeat import chunk_heartbeat
from worker.pictures import PictureStore
from worker.screening import Crew, Ending, screen_chunk
from worker.settings import WorkerSettings
from worker.shelf import FolderShelf


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "home" / "store"


def screen(archive: Archive, batch: int, pictures: PictureStore, model: str = MODEL) -> Ending:
    (chunk,) = archive.chunks(batch)
    claimed = claim_chunk(archive.engine, chunk, worker="w1", lease_seconds=30)
    assert claimed is not None
    given = WorkerSettings()
    scorer = LightClassifier(model)
    with chunk_heartbeat(archive.engine, claimed, given) as heartbeat, Crew(given, scorer) as crew:
        return screen_chunk(
            archive.engine,
            claimed,
            scorer,
            given,
            heartbeat,
            crew=crew,
            stopping=lambda: False,
            pictures=pictures,
        ).ending


def names(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for path in (store / "thumbs").glob("*")}


def inputs(archive: Archive, batch: int, where: str = "true") -> set[str]:
    with archive.engine.connect() as connection:
        rows = connection.execute(text(f"SELECT input_digest FROM item WHERE batch_id = {batch} AND {where}"))  # noqa: S608
        return {str(row.input_digest) for row in rows}


def test_what_is_prioritised_or_referred_is_drawn_while_it_is_screened(archive: Archive, store: Path) -> None:
    # Given two dark images, one above the operating point and one that is referred
    batch = archive.load([*archive.draw(2), *archive.draw(1, first=200), *archive.draw(1, first=250)])

    # If they are screened
    screen(archive, batch, PictureStore(shelf=FolderShelf(store)))

    # Then the two bright ones have a thumbnail, for their owner's eyes only
    bright = inputs(archive, batch, "path IN ('200.png', '250.png')")
    assert names(store) == {thumb_path(digest) for digest in bright}
    # And every verdict has the evidence for it, the dark ones' too
    with archive.engine.connect() as connection:
        told = connection.execute(text("SELECT malignant_score, evidence FROM result")).all()
    assert [unpack_evidence(row.evidence) for row in told] == [
        [(pytest.approx(row.malignant_score, rel=1e-3), 0), (0, 0)] for row in told
    ]
    assert len(told) == 4
    for path in store.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    with Image.open(io.BytesIO(next((store / "thumbs").iterdir()).read_bytes())) as found:
        assert found.size == (32, 32)


def test_a_store_that_takes_no_picture_costs_no_verdict(archive: Archive, store: Path) -> None:
    # Given a store whose folder for thumbnails is a file
    store.mkdir(parents=True)
    (store / "thumbs").touch()
    batch = archive.load(archive.draw(2, first=200))

    ending = screen(archive, batch, PictureStore(shelf=FolderShelf(store)))

    assert ending is Ending.FINISHED
    assert archive.counts(batch).done == 2


def test_a_patient_who_is_erased_while_screened_leaves_no_picture(archive: Archive, store: Path) -> None:
    # Given a chunk of an image of one patient and one of another
    rows = archive.draw(2, first=200)
    batch = archive.load(rows)
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE item SET patient_ref = path"))

    class Forgetful(PictureStore):
        """Lets the patient be erased after drawing and before recording."""

        def draw(self, *arguments: Any) -> None:
            super().draw(*arguments)
            forget_patient(archive.engine, "200.png", "officer", remove_file=lambda _path: None)

    # If the patient is erased while the worker holds the image
    screen(archive, batch, Forgetful(shelf=FolderShelf(store)))

    # Then the other one's picture alone is there
    (left,) = inputs(archive, batch)
    assert names(store) == {thumb_path(left)}


@pytest.fixture
def registered(archive: Archive, stack: Stack) -> str:
    assert stack.register_model().returncode == 0
    with archive.engine.connect() as connection:
        return str(connection.execute(text("SELECT digest FROM model_version")).scalar_one())


def test_a_worker_draws_the_rest_when_it_is_asked_to(
    archive: Archive, stack: Stack, redis_url: str, store: Path, registered: str
) -> None:
    # Given a batch that a real worker has screened, and one file that has changed since
    batch = archive.load(archive.draw(4), model=registered)
    stack.start_worker()
    stack.start_feeder()
    stack.until(lambda: archive.counts(batch).open == 0)
    assert names(store) == set()
    (archive.root / "003.png").write_bytes((archive.root / "000.png").read_bytes())

    # If it is asked twice to draw the chunk
    (chunk,) = scored_inputs(archive.engine, batch)
    check = ClaimCheck(version=CONTRACT_VERSION, batch=batch, chunk=chunk, items=4, model=registered)
    with Doorbell(redis_url) as doorbell:
        doorbell.ring_rendering(check)
        doorbell.ring_rendering(check)
        stack.await_log("w1", "chunk drawn")
        stack.until(lambda: doorbell.queue_depth(RENDERING_QUEUE) == 0 and stack.log("w1").count("chunk drawn") == 2)

    # Then what was scored is drawn, and not what stands in its file's place now
    drawn = inputs(archive, batch, "path <> '003.png'")
    assert names(store) == {thumb_path(digest) for digest in drawn}
    assert archive.counts(batch).done == 4


def test_nothing_is_drawn_on_request_while_something_waits_to_be_screened(
    archive: Archive, stack: Stack, redis_url: str, registered: str
) -> None:
    # Given a screened batch whose pictures are asked for, and three chunks that came later
    done = archive.load(archive.draw(2), model=registered)
    screen(archive, done, PictureStore(shelf=FolderShelf(archive.root.parent / "unused")), registered)
    waiting = archive.load(*([row] for row in archive.draw(3, first=100)), model=registered)
    checks = [
        ClaimCheck(version=CONTRACT_VERSION, batch=batch, chunk=chunk, items=1, model=registered)
        for batch in (done, waiting)
        for chunk in archive.chunks(batch)
    ]
    with Doorbell(redis_url) as doorbell:
        doorbell.ring_rendering(checks[0])
        doorbell.ring_rendering(checks[0])
        for check in checks[1:]:
            doorbell.ring(check)

        # If a worker starts
        stack.start_worker()
        stack.until(lambda: stack.log("w1").count("chunk drawn") == 2)

    # Then all is screened before anything is drawn
    events = [line for line in stack.log("w1").splitlines() if "chunk left" in line or "chunk drawn" in line]
    assert ["chunk left" in line for line in events] == [True, True, True, False, False]
