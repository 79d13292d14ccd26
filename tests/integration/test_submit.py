"""Submitting archives into the ledger, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from db.batches import find_batch, get_batch, list_batches
from db.counts import count_items
from db.health import check_batch
from db.results import iter_report, stored_inputs
from db.tables import BatchState
from producer.archive import open_archive
from producer.errors import ArchiveProblem
from producer.rehash import rehash_files
from producer.submit import Submitted, ring_open_chunks, submit_archive
from worker.doorbell import Doorbell
from worker.errors import BrokerUnavailable

if TYPE_CHECKING:
    from tests.conftest import Scene

MODEL = "a" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    root.mkdir()
    for number in range(10):
        (root / f"i{number}.jpg").write_bytes(bytes([number]) * 10)
    rows = [f"i{number},{30 + number},male,back,nv" for number in range(9)]
    (root / "metadata.csv").write_text("\n".join(["isic_id,age_approx,sex,anatom_site_general,diagnosis_3", *rows]))
    return root


def _submit(scene: Scene, root: Path, model: str = MODEL, chunk_items: int = 4) -> Submitted:
    return submit_archive(
        scene.engine, open_archive(root), name="n", model_digest=model, priority=2, chunk_items=chunk_items
    )


def test_a_submitted_archive_is_an_open_batch_with_all_its_items(scene: Scene, root: Path) -> None:
    # Given a row whose image is missing, and a name that is no text
    with (root / "metadata.csv").open("a") as table:
        table.write("\ngone,50,female,,mel\n../out,1,,,\n")
    Path(str(root / "m\udcfcller.jpg")).write_bytes(b"x")

    submitted = _submit(scene, root)

    assert (submitted.items, submitted.chunks, submitted.existed) == (13, 4, False)
    assert submitted.problems == {"image_without_row": 2, "missing_image": 1, "unsafe_path": 1}
    batch = get_batch(scene.engine, submitted.batch)
    assert (batch.state, batch.source, batch.priority) == (BatchState.OPEN, str(root), 2)
    counts = count_items(scene.engine, submitted.batch)
    assert (counts.found, counts.open, counts.rejected) == (13, 10, 3)
    assert counts.reasons == {"missing_image": 1, "unreadable_name": 1, "unsafe_path": 1}
    assert check_batch(scene.engine, submitted.batch) == []
    by_id = {row.image_id: row for row in iter_report(scene.engine, submitted.batch)}
    assert (by_id["i3"].age, by_id["i3"].sex, by_id["i3"].localization, by_id["i3"].label) == (33, "male", "back", "nv")
    assert by_id["i9"].age is None
    assert by_id["m\udcfcller"].path == "m\udcfcller.jpg"


def test_the_same_archive_and_model_are_the_same_batch(scene: Scene, root: Path) -> None:
    first = _submit(scene, root)

    again = _submit(scene, root, chunk_items=100)
    other = _submit(scene, root, model="b" * 64)

    assert (again.batch, again.items, again.chunks, again.existed) == (first.batch, 10, 3, True)
    assert (other.batch != first.batch, other.existed) == (True, False)
    assert len(list_batches(scene.engine)) == 2


def test_an_archive_that_has_grown_is_a_new_batch_and_old_results_stay_known(scene: Scene, root: Path) -> None:
    # Given a screened archive
    first = _submit(scene, root, chunk_items=100)
    claim = scene.claim(scene.chunks(first.batch)[0])
    scene.finish(claim)

    # If it grows
    (root / "new.jpg").write_bytes(b"new")
    grown = _submit(scene, root)

    # Then the new batch has all of it, and nothing stored was touched
    assert (grown.batch != first.batch, grown.items) == (True, 11)
    assert count_items(scene.engine, grown.batch).open == 11
    digests = [f"{one.item_id:064x}" for one in claim.items]
    assert len(stored_inputs(scene.engine, MODEL, digests)) == 10


def test_two_producers_at_once_make_one_batch(scene: Scene, root: Path) -> None:
    # Given two producers that begin in the same moment
    barrier = threading.Barrier(2)

    def submit() -> Submitted:
        barrier.wait()
        return _submit(scene, root)

    with ThreadPoolExecutor(2) as pool:
        one, other = [future.result() for future in [pool.submit(submit), pool.submit(submit)]]

    assert one.batch == other.batch
    assert [batch.id for batch in list_batches(scene.engine)] == [one.batch]
    assert count_items(scene.engine, one.batch).found == 10


def test_a_producer_that_died_while_loading_leaves_nothing_behind(scene: Scene, root: Path) -> None:
    # Given a batch that was half loaded, long ago
    dead = scene.load([scene.item()], source=str(root))
    scene.sql("UPDATE batch SET touched_at = touched_at - 3600 WHERE id = :b", b=dead)

    submitted = _submit(scene, root)

    assert [batch.id for batch in list_batches(scene.engine)] == [submitted.batch]


def test_an_empty_archive_is_a_plain_sentence_and_no_batch(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ArchiveProblem, match="no image"):
        _submit(scene, tmp_path / "empty")

    assert list_batches(scene.engine) == []


def test_an_archive_of_nothing_but_lost_images_is_finished_at_once(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metadata.csv").write_text("isic_id\none\ntwo\n")

    counts = count_items(scene.engine, _submit(scene, tmp_path / "a").batch)

    assert (counts.found, counts.open, counts.rejected) == (2, 0, 2)


def test_workers_are_rung_with_claim_checks_that_name_no_patient(scene: Scene, root: Path, redis_url: str) -> None:
    submitted = _submit(scene, root)

    assert ring_open_chunks(scene.engine, redis_url) == 3

    # Rung a moment ago, so that the feeder rings no second time
    assert ring_open_chunks(scene.engine, redis_url) == 0
    with Doorbell(redis_url) as doorbell:
        assert doorbell.queue_depth() == 3
    assert find_batch(scene.engine, get_batch(scene.engine, submitted.batch).manifest_digest or "", MODEL)


def test_without_redis_the_ledger_has_everything_and_nothing_counts_as_rung(scene: Scene, root: Path) -> None:
    submitted = _submit(scene, root)

    with pytest.raises(BrokerUnavailable):
        ring_open_chunks(scene.engine, "redis://:secret@127.0.0.1:1/0")

    assert count_items(scene.engine, submitted.batch).open == 10
    assert scene.sql("SELECT count(*) FROM chunk WHERE rung_at IS NOT NULL") == [(0,)]


def test_files_that_are_not_what_was_scored_are_found(scene: Scene, root: Path) -> None:
    # Given a screened archive, whose digests are not those of its files, and a file that went away
    submitted = _submit(scene, root, chunk_items=100)
    scene.finish(scene.claim(scene.chunks(submitted.batch)[0]))
    (root / "i0.jpg").unlink()
    # A folder took a file's place
    (root / "i2.jpg").unlink()
    (root / "i2.jpg").mkdir()

    differences = list(rehash_files(scene.engine, submitted.batch, root))

    assert [(one.path, one.kind) for one in differences][:3] == [
        ("i0.jpg", "missing_file"),
        ("i1.jpg", "changed_file"),
        ("i2.jpg", "unreadable_file"),
    ]
    assert len(differences) == 10
