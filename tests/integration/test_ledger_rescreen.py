"""Screening again under another model, and comparing two models' verdicts, on both databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from db.batches import add_chunk, finish_loading, get_batch
from db.chunks import Rejected
from db.control import cancel_batch
from db.counts import count_items
from db.errors import UnknownBatch, UnknownModel, WrongBatchState
from db.feed import ring_chunks
from db.health import check_batch
from db.models import activate_model, active_model, find_model, list_models, register_model, roll_back_model
from db.rescreen import ChangeKind, Changes, Comparison, ModelSide, copy_batch
from tests.archive import MODEL

if TYPE_CHECKING:
    from tests.conftest import Scene

OTHER = "b" * 64
THIRD = "bbbbbbb" + "c" * 57


def _register(scene: Scene, *digests: str) -> None:
    for digest in digests:
        register_model(scene.engine, digest=digest, name="m", backbone="b", metrics={}, data_digest="0" * 64)


def test_a_batch_is_opened_again_under_another_model_and_goes_last(scene: Scene) -> None:
    # Given a finished batch with a verdict, a rejected file, and a row that never had a path
    _register(scene, MODEL, OTHER)
    batch = scene.load([scene.item("a.png"), scene.item("b.png"), scene.item(None, rejected="unsafe_path")])
    add_chunk(scene.engine, batch, [scene.item("c.png")])
    finish_loading(scene.engine, batch, "f" * 64)
    first, second = scene.chunks(batch)
    claim = scene.claim(first)
    scene.record(claim, scene.scored(claim.items[0]), Rejected(item_id=claim.items[1].item_id, reason="truncated"))
    scene.finish(scene.claim(second))

    # If it is screened again, twice
    copied = copy_batch(scene.engine, batch, OTHER, "me")
    again = copy_batch(scene.engine, batch, OTHER, "me")

    # Then there is one batch more, with everything open that can be opened
    assert not copied.existed
    assert again.existed
    assert again.batch_id == copied.batch_id
    counts = count_items(scene.engine, copied.batch_id)
    assert (counts.open, counts.rejected, counts.done) == (3, 1, 0)
    assert counts.reasons == {"unsafe_path": 1}
    assert check_batch(scene.engine, copied.batch_id) == []
    assert get_batch(scene.engine, copied.batch_id).model_digest == OTHER
    # And rows are the same, letter by letter
    rows = "SELECT path, size, age, sex, localization FROM item WHERE batch_id = :b ORDER BY id"
    assert scene.sql(rows, b=copied.batch_id) == scene.sql(rows, b=batch)
    # And a new batch of the lowest priority goes before it
    late, _ = scene.open(1)
    scene.sql("UPDATE batch SET priority = -1000 WHERE id = :b", b=late)
    assert [chunk.batch_id for chunk in ring_chunks(scene.engine, limit=10)] == [late, copied.batch_id, copied.batch_id]
    # And the archive's own batch is what its model finds
    assert copy_batch(scene.engine, copied.batch_id, MODEL, "me").batch_id == batch


def test_what_cannot_be_screened_again_is_refused(scene: Scene) -> None:
    _register(scene, MODEL, OTHER)
    loading = scene.load([scene.item()])

    with pytest.raises(WrongBatchState, match="submit its archive again"):
        copy_batch(scene.engine, loading, OTHER, "me")
    with pytest.raises(UnknownModel):
        copy_batch(scene.engine, loading, THIRD, "me")
    with pytest.raises(UnknownBatch):
        copy_batch(scene.engine, 99, OTHER, "me")


def test_a_copy_that_was_killed_half_way_leaves_no_half_batch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a copy that dies after its first chunk
    _register(scene, MODEL, OTHER)
    batch, _ = scene.open(1, 1)
    with monkeypatch.context() as patched:
        patched.setattr("db.rescreen.finish_loading", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy_batch(scene.engine, batch, OTHER, "me")
    scene.sql("UPDATE batch SET touched_at = touched_at - 3600 WHERE state = 'loading'")

    # If it is asked for again
    copied = copy_batch(scene.engine, batch, OTHER, "me")

    # Then there is one copy, and it is whole
    assert scene.sql("SELECT count(*) FROM batch") == [(2,)]
    assert count_items(scene.engine, copied.batch_id).open == 2


def test_changed_verdicts_are_counted_and_listed_the_worst_first(scene: Scene) -> None:
    # Given six images with a verdict of both models, one with one alone, and one rejected
    before, after = ModelSide(digest=MODEL, threshold=0.5), ModelSide(digest=OTHER, threshold=0.4)
    batch, (chunk,) = scene.open(8)
    claim = scene.claim(chunk)
    said = [
        # old score, referred; new score, referred
        (0.1, False, 0.45, False),
        (0.1, False, 0.9, True),
        (0.6, False, 0.2, False),
        (0.45, False, 0.45, False),
        (0.1, False, 0.1, True),
        (0.1, True, 0.1, False),
    ]
    outcomes = []
    for one, (old, was, _, _) in zip(claim.items, said, strict=False):
        outcomes.append(scene.scored(one, f"{one.item_id:064x}", score=old, referred=was))
    outcomes.append(scene.scored(claim.items[6]))
    rejected = Rejected(item_id=claim.items[7].item_id, reason="truncated")
    scene.record(claim, *outcomes, rejected)
    _register(scene, OTHER)
    copied = copy_batch(scene.engine, batch, OTHER, "me").batch_id
    claim = scene.claim(scene.chunks(copied)[0])
    originals = [item_id for (item_id,) in scene.sql("SELECT id FROM item WHERE batch_id = :b ORDER BY id", b=batch)]
    scene.record(
        claim,
        *(
            scene.scored(one, f"{original:064x}", score=new, referred=is_now, model=OTHER)
            for one, original, (_, _, new, is_now) in zip(claim.items, originals, said, strict=False)
        ),
        model=OTHER,
    )

    for either in (batch, copied):
        # If they are compared, on either model's batch
        comparison = Comparison(scene.engine, either, before, after)

        # Then what reaches the one operating point and not the other leads, by its new score
        assert comparison.count() == Changes(
            compared=6,
            incomparable=2,
            kinds={
                ChangeKind.NEWLY_PRIORITISED: 3,
                ChangeKind.NEWLY_REFERRED: 1,
                ChangeKind.NO_LONGER_PRIORITISED: 1,
                ChangeKind.NO_LONGER_REFERRED: 1,
            },
        )
        listed = list(comparison.list())
        assert [round(change.after.malignant_score, 2) for change in listed] == [0.9, 0.45, 0.45, 0.1, 0.2, 0.1]
        assert [change.kind for change in listed] == sorted(change.kind for change in listed)
        assert (listed[0].before.prioritised, listed[0].after.prioritised) == (False, True)
        assert (listed[0].before.referred, listed[0].after.referred) == (False, True)
    # And a model compared with itself has changed nothing
    assert Comparison(scene.engine, batch, before, before).count().kinds == {}


def test_models_are_found_by_the_beginning_of_their_digest(scene: Scene) -> None:
    _register(scene, MODEL, OTHER, THIRD)

    assert find_model(scene.engine, "aaaaaa").digest == MODEL
    assert find_model(scene.engine, THIRD[:8]).digest == THIRD
    for wanted, why in (
        ("bbbbbb", "several"),
        ("abcdef", "no model version"),
        ("aaa", "six digits"),
        ("%%%%%%", "six"),
    ):
        with pytest.raises(UnknownModel, match=why):
            find_model(scene.engine, wanted)


def test_rolling_back_goes_further_back_each_time(scene: Scene) -> None:
    # Given three models that were promoted in turn
    _register(scene, MODEL, OTHER, THIRD)
    for digest in (MODEL, OTHER, THIRD):
        activate_model(scene.engine, digest, actor="me", why="better")

    # If it is rolled back, promoted, and rolled back
    assert roll_back_model(scene.engine, actor="me", why="worse").digest == OTHER
    activate_model(scene.engine, THIRD, actor="me", why="mended")
    assert roll_back_model(scene.engine, actor="me", why="worse").digest == OTHER
    assert roll_back_model(scene.engine, actor="me", why="worse").digest == MODEL

    # Then the first one stays, and every step is in the audit trail
    with pytest.raises(UnknownModel, match="nothing to go back to"):
        roll_back_model(scene.engine, actor="me", why="worse")
    active = active_model(scene.engine)
    assert active is not None
    assert active.digest == MODEL
    assert [row.state for row in list_models(scene.engine)].count(active.state) == 1
    actions = [action for (action,) in scene.sql("SELECT action FROM audit ORDER BY id")]
    assert actions == ["activate_model"] * 3 + ["roll_back_model", "activate_model"] + ["roll_back_model"] * 2


def test_a_cancelled_batch_can_be_screened_again(scene: Scene) -> None:
    _register(scene, MODEL, OTHER)
    batch, _ = scene.open(2)
    cancel_batch(scene.engine, batch, "me")

    copied = copy_batch(scene.engine, batch, OTHER, "me")

    assert count_items(scene.engine, copied.batch_id).open == 2
