"""Instances of a PACS that an earlier batch has verdicts on, on both databases."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from db.batches import ItemRow, finish_loading, start_batch
from db.counts import count_items, settle_chunk
from db.erasure import Erased, forget_patient, purge_batches
from db.errors import WrongBatchState
from db.health import check_batch
from db.known import settle_known
from tests.archive import MODEL
from tests.conftest import Scene
from tests.servers import await_that

if TYPE_CHECKING:
    from sqlalchemy import Engine

PLACE = "dicomweb://pacs/x"
OTHER_MODEL = "b" * 64


def instance(scene: Scene, number: int, frame: int | None = None) -> ItemRow:
    """Describe an instance of a study of its own."""
    uid = f"2.25.{number}"
    found = replace(scene.item(f"studies/{uid}/series/{uid}/instances/{uid}"), size=None, mtime_ns=None)
    return replace(found, frame=frame, study_uid=uid, series_uid=uid, instance_uid=uid, patient_ref=f"p{number}")


def screened(scene: Scene, *items: ItemRow, source: str = f"{PLACE}?Modality=XC", model: str = MODEL) -> int:
    """Open a batch whose items are scored, the second of them referred, and the third rejected."""
    batch = scene.load(list(items), source=source, model=model)
    finish_loading(scene.engine, batch, f"{batch:064x}")
    claim = scene.claim(scene.chunks(batch)[0])
    outcomes = [scene.scored(one, referred=number == 1, model=model) for number, one in enumerate(claim.items)]
    scene.record(claim, *outcomes, model=model)
    return batch


def open_again(scene: Scene, *items: ItemRow, source: str = PLACE) -> tuple[int, int]:
    """Load a batch, one item a chunk, and open it; returns it and how many of its items were known."""
    batch = scene.load(*([one] for one in items), source=source)
    known = settle_known(scene.engine, batch, PLACE)
    assert settle_known(scene.engine, batch, PLACE) == 0
    finish_loading(scene.engine, batch, f"{batch:064x}")
    assert check_batch(scene.engine, batch) == []
    return batch, known


def test_what_was_screened_before_has_its_verdict_and_the_rest_is_open(scene: Scene) -> None:
    # Given a batch of three instances, one of them with two frames, that were screened
    before = [instance(scene, 1), instance(scene, 2), instance(scene, 3, 1), instance(scene, 3, 2)]
    first = screened(scene, *before)

    # If the same and a new one are pulled, what they are asked for written in another way
    batch, known = open_again(scene, *before, instance(scene, 4))

    # Then the new one alone is open, and the others have the verdicts that they had
    assert known == 4
    counts = count_items(scene.engine, batch)
    assert (counts.open, counts.done, counts.referred) == (1, 3, 1)
    verdicts = "SELECT path, frame, state, image_digest, input_digest FROM item WHERE batch_id = :b AND state <> 'open'"
    assert sorted(scene.sql(verdicts, b=batch), key=str) == sorted(scene.sql(verdicts, b=first), key=str)

    # If it is pulled a third time, the newest is taken, and nothing is open
    scene.finish(scene.claim(scene.chunks(batch)[4]))
    third, known = open_again(scene, *before, instance(scene, 4))
    assert (known, count_items(scene.engine, third).open) == (5, 0)


@pytest.mark.parametrize(
    "other",
    ["age", "sex", "localization", "frame", "instance", "path", "server", "model", "rejected", "open", "erased"],
)
def test_what_differs_in_anything_is_fetched(scene: Scene, other: str) -> None:
    # Given an instance that was screened, and another in one respect
    one = instance(scene, 1)
    if other == "server":
        screened(scene, one, source="dicomweb://pacs/xy?Modality=XC")
    elif other == "model":
        screened(scene, one, model=OTHER_MODEL)
    elif other in {"rejected", "open"}:
        batch = scene.load([one], source=PLACE)
        finish_loading(scene.engine, batch, "e" * 64)
        if other == "rejected":
            scene.sql("UPDATE item SET state = 'rejected', reason = 'not_delivered' WHERE batch_id = :b", b=batch)
    else:
        screened(scene, one)
    if other == "erased":
        forget_patient(scene.engine, "p1", "owner", remove_file=lambda _path: None)
    changed = {
        "age": replace(one, age=41.0),
        "sex": replace(one, sex=None),
        "localization": replace(one, localization="arm"),
        "frame": replace(one, frame=1),
        "instance": replace(one, instance_uid="2.25.9"),
        "path": replace(one, path="studies/2.25.9"),
    }

    # If it is pulled, then it is open
    batch, known = open_again(scene, changed.get(other, one))
    assert (known, count_items(scene.engine, batch).open) == (0, 1)


def test_a_purge_waits_for_verdicts_that_are_being_given(
    postgres_ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an old batch that is purged at the moment in which another one has been given its verdicts
    scene = Scene(engine=postgres_ledger)
    old = screened(scene, *[instance(scene, number) for number in range(3)])
    scene.sql("UPDATE batch SET opened_at = opened_at - 864000 WHERE id = :b", b=old)
    purging: list[Future[Erased]] = []

    def settle(*arguments: Any) -> int:
        if not purging:
            purging.append(pool.submit(purge_batches, scene.engine, 5, "officer"))
            await_that(lambda: purging[0].done() or bool(scene.sql("SELECT 1 FROM pg_locks WHERE NOT granted")))
        return settle_chunk(*arguments)

    monkeypatch.setattr("db.known.settle_chunk", settle)

    # If both go on
    with ThreadPoolExecutor(1) as pool:
        batch, known = open_again(scene, *[instance(scene, number) for number in range(3)])
        assert purging[0].result(60).batches == (old,)

    # Then the new one has verdicts, and they are there
    assert (known, count_items(scene.engine, batch).open) == (3, 0)
    assert check_batch(scene.engine, batch) == []


def test_a_batch_that_is_open_already_is_left_alone(scene: Scene) -> None:
    screened(scene, instance(scene, 1))
    batch = start_batch(scene.engine, name="n", source=PLACE, model_digest=MODEL)
    scene.sql("UPDATE batch SET state = 'open', manifest_digest = 'm' WHERE id = :b", b=batch)
    assert settle_known(scene.engine, batch, PLACE) == 0
    loading = scene.load([instance(scene, 1)], source=PLACE)
    scene.sql("UPDATE batch SET state = 'open', manifest_digest = 'n' WHERE id = :b", b=loading)
    with pytest.raises(WrongBatchState):
        settle_known(scene.engine, loading, PLACE)
