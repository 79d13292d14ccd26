"""Erasing a patient and old batches, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text

from db.audit import verify_chain
from db.batches import find_batch, finish_loading, get_batch, list_batches
from db.chunks import Rejected, claim_chunk, mark_suspect
from db.control import cancel_batch, resume_batch, retry_batch
from db.counts import count_items
from db.erasure import Erased, find_outlived, forget_patient, purge_batches
from db.errors import LeaseLost, UnknownBatch, WrongBatchState
from db.health import check_batch
from db.models import register_model
from db.pictures import thumb_path
from db.rescreen import copy_batch
from tests.archive import MODEL
from tests.conftest import Scene

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from db.batches import ItemRow

PATIENT = "Zauberfrau-4711"


def nothing_drawn(path: str) -> None:
    """Stand where a file is deleted if it is there, in tests whose verdicts have none."""
    assert path.startswith(("thumbs/", "maps/"))


def _patients_items(scene: Scene, *patients: str | None) -> list[ItemRow]:
    return [replace(scene.item(f"{n}.png"), patient_ref=patient) for n, patient in enumerate(patients)]


def _open(scene: Scene, *chunks: list[ItemRow]) -> tuple[int, list[int]]:
    batch = scene.load(*chunks)
    finish_loading(scene.engine, batch, f"{batch:064x}")
    return batch, scene.chunks(batch)


def test_a_patient_is_erased_from_every_batch_and_the_rest_stays(scene: Scene) -> None:
    # Given two batches with a patient's images: done, rejected and open, one with the same bytes as another patient's
    first, (one, two) = _open(scene, _patients_items(scene, PATIENT, "other", None), _patients_items(scene, PATIENT))
    second, (three,) = _open(scene, _patients_items(scene, PATIENT, "other"))
    claim = scene.claim(one)
    scene.record(claim, *(scene.scored(each, f"{number:064x}") for number, each in enumerate(claim.items)))
    claim = scene.claim(two)
    scene.record(claim, Rejected(item_id=claim.items[0].item_id, reason="truncated"))
    claim = scene.claim(three)
    scene.record(claim, scene.scored(claim.items[0], "e" * 64), scene.scored(claim.items[1], "0" * 64, known=True))

    # If the patient is forgotten
    erased = forget_patient(scene.engine, PATIENT, "officer", remove_file=nothing_drawn)

    # Then all of it is gone, but for the verdict that another patient's image shares
    assert erased == Erased(batches=(first, second), items=3, results=1)
    assert scene.sql("SELECT count(*) FROM item WHERE patient_ref = :p", p=PATIENT) == [(0,)]
    assert {digest for (digest,) in scene.sql("SELECT input_digest FROM result")} == {f"{n:064x}" for n in range(3)}
    # And the counts are true
    assert count_items(scene.engine, first).done == 2
    assert count_items(scene.engine, second).done == 1
    for batch in (first, second):
        assert check_batch(scene.engine, batch) == []
    # And the audit trail says how much, and not who
    ((subject, detail),) = scene.sql("SELECT subject, detail FROM audit WHERE action = 'forget_patient'")
    assert (subject, detail) == (f"batch {first}, {second}", "3 items, 1 results")
    assert verify_chain(scene.engine)
    # And once more there is nothing, and nothing is said
    assert forget_patient(scene.engine, PATIENT, "officer", remove_file=nothing_drawn) == Erased(
        batches=(), items=0, results=0
    )
    assert scene.sql("SELECT count(*) FROM audit WHERE action = 'forget_patient'") == [(1,)]


def test_what_a_worker_holds_of_the_patient_is_not_recorded(scene: Scene) -> None:
    # Given a claim of two items, the patient's under suspicion, and another chunk with the patient's alone
    batch, (chunk, alone) = _open(scene, _patients_items(scene, PATIENT, "other"), _patients_items(scene, PATIENT))
    claim = scene.claim(chunk)
    mark_suspect(scene.engine, chunk, claim.attempt, claim.items[0].item_id)
    lonely = scene.claim(alone)

    # If the patient is forgotten while they are screened
    forget_patient(scene.engine, PATIENT, "officer", remove_file=nothing_drawn)

    # Then the rest is recorded, and of the patient nothing
    assert scene.finish(claim) == 0
    with pytest.raises(LeaseLost):
        scene.finish(lonely)
    assert count_items(scene.engine, batch).done == 1
    assert scene.sql("SELECT count(*) FROM result") == [(1,)]
    assert check_batch(scene.engine, batch) == []


def test_a_suspect_that_was_erased_is_nobodys_crash(scene: Scene) -> None:
    # Given a worker that died while it opened the patient's image
    batch, (chunk,) = _open(scene, _patients_items(scene, PATIENT, "other"))
    claim = scene.claim(chunk)
    mark_suspect(scene.engine, chunk, claim.attempt, claim.items[0].item_id)
    scene.expire(chunk)

    # If the patient is forgotten and the chunk is taken over
    forget_patient(scene.engine, PATIENT, "officer", remove_file=nothing_drawn)
    again = scene.claim(chunk)

    # Then the other image bears no mark
    assert [each.marks for each in again.items] == [0]
    assert check_batch(scene.engine, batch) == []


def test_forgetting_and_recording_at_once_leave_no_item_without_a_verdict(scene: Scene) -> None:
    # Given a patient's verdicts, and another patient's images with the same bytes that are about to be recorded
    batch, chunks = _open(scene, *[_patients_items(scene, PATIENT)] * 20, *[_patients_items(scene, "other")] * 20)
    for number, chunk in enumerate(chunks[:20]):
        claim = scene.claim(chunk)
        scene.record(claim, scene.scored(claim.items[0], f"{number:064x}"))
    claims = [scene.claim(chunk) for chunk in chunks[20:]]

    # If both are done at the same moment
    def record() -> None:
        for number, claim in enumerate(claims):
            scene.record(claim, scene.scored(claim.items[0], f"{number:064x}"))

    with ThreadPoolExecutor(2) as pool:
        recording = pool.submit(record)
        forgetting = pool.submit(forget_patient, scene.engine, PATIENT, "officer", remove_file=nothing_drawn)
        assert forgetting.result(60).items == 20
        recording.result(60)

    # Then every item that is left has its verdict
    assert count_items(scene.engine, batch).done == 20
    assert check_batch(scene.engine, batch) == []


def test_nothing_of_a_patient_is_legible_in_a_sqlite_file_any_more(sqlite_ledger: Engine, tmp_path: Path) -> None:
    # Given patients whose rows were updated and moved about in the file
    scene = Scene(engine=sqlite_ledger)
    _, chunks = _open(scene, *[_patients_items(scene, *[PATIENT] * 40)] * 5)
    for chunk in chunks:
        scene.finish(scene.claim(chunk))
    home = tmp_path / "home"

    def legible() -> bool:
        return any(PATIENT.encode() in path.read_bytes() for path in home.iterdir())

    # If they are forgotten
    scene.engine.dispose()
    assert legible()
    forget_patient(scene.engine, PATIENT, "officer", remove_file=nothing_drawn)

    # Then neither the file nor its log holds the name
    scene.engine.dispose()
    assert not legible()


def _age(scene: Scene, batch: int, days: float) -> None:
    scene.sql("UPDATE batch SET opened_at = opened_at - :s WHERE id = :b", s=days * 86_400, b=batch)


def test_old_batches_are_purged_and_what_is_worked_on_is_left(scene: Scene) -> None:
    # Given old batches that are finished, cancelled, in work and loading, and a young one that shares an image
    finished, (one,) = scene.open(2)
    scene.finish(scene.claim(one))
    cancelled, (two, _) = scene.open(1, 120)
    scene.finish(scene.claim(two))
    cancel_batch(scene.engine, cancelled, "me")
    working, (three,) = scene.open(1)
    loading = scene.load([scene.item()])
    young, (four,) = scene.open(1)
    claim = scene.claim(four)
    shared = scene.sql("SELECT input_digest FROM item WHERE batch_id = :b ORDER BY id", b=finished)[0][0]
    scene.record(claim, scene.scored(claim.items[0], str(shared), known=True))
    for batch in (finished, cancelled, working):
        _age(scene, batch, 31)

    # If what is older than thirty days is purged
    assert find_outlived(scene.engine, 30, unfinished=True) == [working]
    erased = purge_batches(scene.engine, 30, "officer")

    # Then the old ones that nobody works on are gone, with every verdict that no item is left for
    assert erased == Erased(batches=(finished, cancelled), items=123, results=2)
    assert {row.id for row in list_batches(scene.engine)} == {working, loading, young}
    assert scene.sql("SELECT input_digest FROM result") == [(shared,)]
    with pytest.raises(UnknownBatch):
        get_batch(scene.engine, finished)
    for batch in (working, young):
        assert check_batch(scene.engine, batch) == []
    assert claim_chunk(scene.engine, three, worker="w1", lease_seconds=30) is not None
    ((detail,),) = scene.sql("SELECT detail FROM audit WHERE action = 'purge_batches'")
    assert detail == "123 items, 2 results"
    assert verify_chain(scene.engine)
    # And again there is nothing to do
    assert purge_batches(scene.engine, 30, "officer") == Erased(batches=(), items=0, results=0)


def test_a_purge_that_was_killed_half_way_is_finished_by_the_next(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a purge that dies after its first transaction of chunks
    batch, chunks = scene.open(*[1] * 120)
    for chunk in chunks:
        scene.finish(scene.claim(chunk))
    _age(scene, batch, 31)
    manifest = str(get_batch(scene.engine, batch).manifest_digest)
    assert find_batch(scene.engine, manifest, MODEL) == batch
    with monkeypatch.context() as patched:
        patched.setattr("db.erasure.sum", lambda erased: next(erased) / 0, raising=False)
        with pytest.raises(ZeroDivisionError):
            purge_batches(scene.engine, 30, "officer")
    assert 0 < count_items(scene.engine, batch).done < 120
    assert check_batch(scene.engine, batch) == []
    # And what is left of the batch cannot be taken for its archive, nor gone on with
    assert find_batch(scene.engine, manifest, MODEL) is None
    for refused in (resume_batch, retry_batch):
        with pytest.raises(WrongBatchState, match="half purged"):
            refused(scene.engine, batch, "me")
    register_model(scene.engine, digest=MODEL, name="m", backbone="b", metrics={}, data_digest="d" * 64)
    with pytest.raises(WrongBatchState, match="its whole archive"):
        copy_batch(scene.engine, batch, MODEL, "me")

    # If it is called again
    erased = purge_batches(scene.engine, 30, "officer")

    # Then the rest is erased too, verdicts of the first part included
    assert erased.batches == (batch,)
    assert erased.results == 120
    assert scene.sql("SELECT count(*) FROM item") == [(0,)]


def test_forgetting_a_patient_leaves_the_time_that_a_batch_took(scene: Scene) -> None:
    # Given a batch that ended a month ago
    batch, (chunk,) = _open(scene, _patients_items(scene, PATIENT, "other"))
    scene.finish(scene.claim(chunk))
    scene.sql("UPDATE batch SET created_at = created_at - :s, opened_at = opened_at - :s", s=30 * 86_400)
    scene.sql("UPDATE chunk SET recorded_at = recorded_at - :s", s=30 * 86_400)
    took = count_items(scene.engine, batch).seconds

    # If one of its patients is forgotten today
    forget_patient(scene.engine, PATIENT, "officer", remove_file=nothing_drawn)

    # Then it took no longer for that
    assert count_items(scene.engine, batch).seconds == pytest.approx(took, abs=1)
    assert took < 60


def test_a_transaction_that_deletes_many_files_never_falls_silent(scene: Scene) -> None:
    # Given a patient's 250 verdicts; a server ends a transaction in which nothing is said for half a minute
    _, (chunk,) = _open(scene, _patients_items(scene, *[PATIENT] * 250))
    claim = scene.claim(chunk)
    scene.record(claim, *(scene.scored(each, f"{number:064x}") for number, each in enumerate(claim.items)))
    heard: list[str] = []
    event.listen(scene.engine, "before_cursor_execute", lambda *_: heard.append("statement"))

    # If the patient is forgotten
    forget_patient(scene.engine, PATIENT, "officer", remove_file=lambda _path: heard.append("file"))

    # Then there is a word at least every hundred files
    assert heard.count("file") == 250
    assert max(len(list(run)) for what, run in groupby(heard) if what == "file") <= 100


def test_a_batch_that_is_taken_up_again_is_not_purged(scene: Scene) -> None:
    # Given an old cancelled batch with an open item
    batch, _ = scene.open(1)
    cancel_batch(scene.engine, batch, "me")
    _age(scene, batch, 31)

    # If it is resumed before the purge comes to it
    resume_batch(scene.engine, batch, "me")

    # Then it stays
    assert purge_batches(scene.engine, 30, "officer").batches == ()
    with scene.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM item")).scalar_one() == 1


def test_what_a_verdict_had_drawn_goes_before_the_verdict_does(scene: Scene) -> None:
    # Given two patients, an image of each, and an image that both share
    batch, (chunk,) = _open(scene, _patients_items(scene, PATIENT, "other", PATIENT, "other"))
    claim = scene.claim(chunk)
    digests = ("1" * 64, "2" * 64, "3" * 64, "3" * 64)
    scene.record(claim, *(scene.scored(one, digest) for one, digest in zip(claim.items, digests, strict=True)))
    removed: list[str] = []

    # If the patient is forgotten, on a full or broken disk first
    def refuse(_path: str) -> None:
        raise OSError("read-only")

    with pytest.raises(OSError, match="read-only"):
        forget_patient(scene.engine, PATIENT, "officer", remove_file=refuse)
    assert count_items(scene.engine, batch).done == 4
    forget_patient(scene.engine, PATIENT, "officer", remove_file=removed.append)

    # Then what was drawn of the patient's own verdict is gone, and nothing else
    assert removed == [thumb_path("1" * 64)]
    assert count_items(scene.engine, batch).done == 2
    assert check_batch(scene.engine, batch) == []
