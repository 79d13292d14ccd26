"""Measuring finished batches against their model's reference, on both databases."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from db.batches import finish_loading
from db.chunks import Rejected
from db.control import cancel_batch, retry_batch
from db.counts import count_items
from db.drift import accept_reference, find_unmeasured, get_drift, measure_distribution, record_drift
from db.erasure import purge_batches
from db.errors import UnknownBatch, WrongBatchState
from db.models import register_model
from model.metadata import PatientMetadata
from model.reference import Reference, make_reference
from tests.archive import MODEL
from worker.drift import measure_finished

if TYPE_CHECKING:
    from tests.conftest import Scene

OLD = "b" * 64


def _reference(scene: Scene, *, digest: str = MODEL) -> Reference:
    """Register a model that was judged on patients of forty to sixty with its scores spread evenly."""
    patients = [PatientMetadata(age=40.0 + one % 20, localization="back") for one in range(1000)]
    reference = make_reference(patients, np.arange(1000) / 1000, np.arange(1000) / 500)
    register_model(
        scene.engine,
        digest=digest,
        name="m",
        backbone="b",
        metrics={},
        data_digest="0" * 64,
        reference=reference.model_dump(mode="json"),
    )
    return reference


def _screen(scene: Scene, count: int, *, age: float | None, site: str | None, shift: float = 0.0) -> int:
    """Finish a batch whose scores are spread evenly above `shift`."""
    items = [replace(scene.item(f"{one}.png"), age=age, localization=site) for one in range(count)]
    batch = scene.load(items)
    finish_loading(scene.engine, batch, f"{batch:064x}")
    (chunk,) = scene.chunks(batch)
    claim = scene.claim(chunk)
    outcomes = []
    for number, one in enumerate(claim.items):
        scored = scene.scored(one, f"{batch:032x}{number:032x}")
        assert scored.result is not None
        score = shift + (1 - shift) * number / count
        row = replace(scored.result, malignant_score=score, distance=2 * score)
        outcomes.append(replace(scored, result=row))
    scene.record(claim, *outcomes)
    return batch


def test_a_batch_like_the_reference_shows_no_drift_and_another_one_does(scene: Scene) -> None:
    # Given two finished batches, one of old people's faces and higher scores
    reference = _reference(scene)
    alike = _screen(scene, 600, age=50.0, site="posterior torso")
    other = _screen(scene, 600, age=85.0, site="face", shift=0.5)

    # If they are measured, twice
    assert measure_finished(scene.engine) == 2
    assert measure_finished(scene.engine) == 0

    # Then every image is in a bin of each feature
    row = get_drift(scene.engine, alike)
    assert row is not None
    assert row.images == 600
    assert {feature: sum(bins) for feature, bins in row.counts.items()} == dict.fromkeys(reference.counts, 600)
    # And only the other batch is far away, in everything
    assert all(index < 0.05 for index in row.indices.values())
    row = get_drift(scene.engine, other)
    assert row is not None
    assert set(row.indices) == {"age", "localization", "malignant_score", "distance"}
    assert all(index > 0.25 for index in row.indices.values())
    assert row.compared_with is None


def test_bins_hold_their_lower_bound_and_the_unknown_are_apart(scene: Scene) -> None:
    # Given ages on and beside a bound, none, and a verdict of an earlier version, without a distance
    _reference(scene)
    items = [replace(scene.item(f"{one}.png"), age=age) for one, age in enumerate((19.9, 20.0, 40.0, None))]
    batch = scene.load(items)
    finish_loading(scene.engine, batch, "f" * 64)
    claim = scene.claim(scene.chunks(batch)[0])
    scene.record(claim, *(scene.scored(one, f"{number:064x}") for number, one in enumerate(claim.items)))

    # If they are counted
    found = measure_distribution(
        scene.engine, batch, {"age": (20.0, 40.0), "malignant_score": (0.5,), "distance": (1.0, 2.0)}
    )

    # Then
    assert found.images == 4
    assert found.counts["age"] == (1, 1, 1, 1)
    assert sum(found.counts["malignant_score"]) == 4
    assert found.counts["distance"] == (0, 0, 0)
    measure_finished(scene.engine)
    row = get_drift(scene.engine, batch)
    assert row is not None
    assert "distance" not in row.indices


def test_what_is_not_finished_cancelled_or_of_an_old_model_is_not_measured(scene: Scene) -> None:
    _reference(scene)
    register_model(scene.engine, digest=OLD, name="m", backbone="b", metrics={}, data_digest="0" * 64)
    scene.open(2)
    cancelled, _ = scene.open(2)
    cancel_batch(scene.engine, cancelled, "me")
    old, (chunk,) = scene.open(1, model=OLD)
    claim = scene.claim(chunk)
    scene.record(claim, scene.scored(claim.items[0], model=OLD), model=OLD)
    assert count_items(scene.engine, old).open == 0
    assert find_unmeasured(scene.engine) == []


def test_a_batch_of_which_nothing_was_scored_is_measured_once(scene: Scene) -> None:
    _reference(scene)
    batch, (chunk,) = scene.open(1)
    claim = scene.claim(chunk)
    scene.record(claim, Rejected(item_id=claim.items[0].item_id, reason="truncated"))
    assert (measure_finished(scene.engine), measure_finished(scene.engine)) == (1, 0)
    row = get_drift(scene.engine, batch)
    assert row is not None
    assert (row.images, row.indices) == (0, {})


def test_later_batches_are_compared_with_the_one_that_was_accepted(scene: Scene) -> None:
    # Given a site whose archive is unlike the reference
    _reference(scene)
    first = _screen(scene, 600, age=85.0, site="face")
    measure_finished(scene.engine)

    # If its first batch is accepted, twice
    assert accept_reference(scene.engine, first, actor="physicist", why="looked at 100 of them")
    assert not accept_reference(scene.engine, first, actor="physicist", why="again")

    # Then the next one like it shows no drift, and the trail tells who and why
    second = _screen(scene, 600, age=85.0, site="face")
    measure_finished(scene.engine)
    row = get_drift(scene.engine, second)
    assert row is not None
    assert row.compared_with == first
    assert all(index < 0.05 for index in row.indices.values())
    entries = scene.sql("SELECT actor, subject, detail FROM audit WHERE action = 'accept_reference'")
    assert entries == [("physicist", f"batch {first}", "looked at 100 of them")]


def test_too_few_images_are_no_reference(scene: Scene) -> None:
    _reference(scene)
    batch = _screen(scene, 499, age=50.0, site="back")
    with pytest.raises(WrongBatchState, match="not measured"):
        accept_reference(scene.engine, batch, actor="me", why="x")
    measure_finished(scene.engine)
    with pytest.raises(WrongBatchState, match="499 scored images; a reference needs 500"):
        accept_reference(scene.engine, batch, actor="me", why="x")
    with pytest.raises(UnknownBatch):
        accept_reference(scene.engine, batch + 1, actor="me", why="x")


def test_a_retried_batch_is_measured_again(scene: Scene) -> None:
    # Given a batch that was measured with a failed item
    _reference(scene)
    batch, (chunk,) = scene.open(2)
    claim = scene.claim(chunk)
    scene.record(claim, scene.scored(claim.items[0]), Rejected(item_id=claim.items[1].item_id, reason="truncated"))
    measure_finished(scene.engine)

    # If that is opened again and scored
    retry_batch(scene.engine, batch, "me")
    assert measure_finished(scene.engine) == 0
    claim = scene.claim(chunk)
    scene.finish(claim)

    # Then both count
    assert measure_finished(scene.engine) == 1
    row = get_drift(scene.engine, batch)
    assert row is not None
    assert row.images == 2


def test_what_was_measured_goes_with_its_batch(scene: Scene) -> None:
    _reference(scene)
    batch = _screen(scene, 3, age=50.0, site="back")
    measure_finished(scene.engine)
    scene.sql("UPDATE batch SET created_at = created_at - 1000000, opened_at = opened_at - 1000000")
    assert purge_batches(scene.engine, 1, "me").batches == (batch,)
    assert get_drift(scene.engine, batch) is None


def test_a_batch_that_is_being_erased_is_not_measured(scene: Scene) -> None:
    # Given a feeder that counts a batch
    _reference(scene)
    batch = _screen(scene, 3, age=50.0, site="back")
    (unmeasured,) = find_unmeasured(scene.engine)

    # If it is closed meanwhile, as erasing does first
    cancel_batch(scene.engine, batch, "me")
    record_drift(scene.engine, unmeasured, images=3, counts={"age": (3,)}, indices={"age": 0.0})

    # Then no row comes late and stands in the way
    assert get_drift(scene.engine, batch) is None
