"""What is read out of the ledger, on both databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from db.batches import ItemRow, finish_loading
from db.chunks import Rejected
from db.results import iter_digests, iter_report, rank_malignant, stored_inputs

if TYPE_CHECKING:
    from tests.conftest import Scene


def test_the_report_has_every_item_once_whatever_the_page(scene: Scene) -> None:
    # Given a batch of seven items in two chunks, of which one is rejected and one is still open
    batch, (first, second) = scene.open(4, 3)
    claim, other = scene.claim(first), scene.claim(second)
    rejected = Rejected(item_id=claim.items[0].item_id, reason="truncated", image_digest="e" * 64)
    scene.record(claim, rejected, *(scene.scored(one) for one in claim.items[1:]))
    scene.record(other, scene.scored(other.items[0], referred=True), scene.scored(other.items[1]))

    # If it is read in pages of every size around its own
    reports = [list(iter_report(scene.engine, batch, page=page)) for page in (1, 2, 3, 7, 8)]

    # Then each shows the same rows in the order of the items
    assert all(report == reports[0] for report in reports)
    states = [row.state.value for row in reports[0]]
    assert states == ["rejected", "done", "done", "done", "referred", "done", "open"]
    assert [row.path for row in reports[0]] == [f"0/{n}.jpg" for n in range(4)] + [f"1/{n}.jpg" for n in range(3)]


def test_a_report_row_has_its_verdict_and_its_metadata(scene: Scene) -> None:
    # Given an item with all metadata and a verdict, and one without a verdict
    full = ItemRow(
        path="a.jpg",
        size=3,
        mtime_ns=4,
        image_id="ISIC_1",
        lesion_id="HAM_1",
        patient_ref="P1",
        age=55.0,
        sex="male",
        localization="face",
        label="mel",
    )
    batch = scene.load([full, scene.item(None, rejected="unsafe_path")])
    finish_loading(scene.engine, batch, "c" * 64)
    claim = scene.claim(scene.chunks(batch)[0])
    scene.record(claim, scene.scored(claim.items[0], referred=True, score=0.75))

    # If the report is read
    scored, rejected = iter_report(scene.engine, batch)

    # Then it is all there
    assert (scored.image_id, scored.lesion_id, scored.label) == ("ISIC_1", "HAM_1", "mel")
    assert (scored.age, scored.sex, scored.localization) == (55.0, "male", "face")
    assert (scored.diagnosis, scored.confidence, scored.malignant_score) == ("mel", 0.5, 0.75)
    assert (scored.referred, scored.refer_reason, scored.model_digest) == (True, "low_confidence", "a" * 64)
    assert scored.probabilities == scene.verdict("x", score=0.75).probabilities
    assert (rejected.path, rejected.reason, rejected.probabilities) == (None, "unsafe_path", None)
    assert (rejected.diagnosis, rejected.referred, rejected.model_digest) == (None, None, "a" * 64)


def test_a_result_of_another_model_does_not_appear(scene: Scene) -> None:
    # Given one input that two models have seen
    mine, (chunk,) = scene.open(1)
    theirs, (other,) = scene.open(1, model="f" * 64)
    claim, foreign = scene.claim(chunk), scene.claim(other)
    scene.record(claim, scene.scored(claim.items[0], "d" * 64, score=0.2))
    scene.record(foreign, scene.scored(foreign.items[0], "d" * 64, score=0.9, model="f" * 64), model="f" * 64)

    # If both batches are reported
    # Then each shows its own model's verdict
    assert [row.malignant_score for row in iter_report(scene.engine, mine)] == [0.2]
    assert [row.malignant_score for row in iter_report(scene.engine, theirs)] == [0.9]


def test_the_most_suspicious_come_first_and_ties_by_path(scene: Scene) -> None:
    # Given a batch with four scores, two of them equal, and a rejected item
    batch, (chunk,) = scene.open(5)
    claim = scene.claim(chunk)
    scores = (0.3, 0.9, 0.1, 0.9)
    outcomes = [scene.scored(one, score=score) for one, score in zip(claim.items[:4], scores, strict=True)]
    scene.record(claim, *outcomes, Rejected(item_id=claim.items[4].item_id, reason="truncated"))

    # If the first three are asked for
    ranked = rank_malignant(scene.engine, batch, 3)

    # Then they are in order, and the item without a verdict is not among any number of them
    assert [(row.path, row.malignant_score) for row in ranked] == [("0/1.jpg", 0.9), ("0/3.jpg", 0.9), ("0/0.jpg", 0.3)]
    assert len(rank_malignant(scene.engine, batch, 100)) == 4


def test_the_inputs_that_a_model_has_seen_are_found_in_any_number(scene: Scene) -> None:
    # Given three stored results
    _, (chunk,) = scene.open(3)
    claim = scene.claim(chunk)
    scene.finish(claim)
    known = {f"{one.item_id:064x}" for one in claim.items}

    # If they are looked up among more than one statement's worth of others
    asked = known | {f"{number:064x}" for number in range(1_000_000, 1_012_000)}

    # Then they and only they are known, to this model only
    assert stored_inputs(scene.engine, "a" * 64, asked) == known
    assert stored_inputs(scene.engine, "f" * 64, asked) == frozenset()
    assert stored_inputs(scene.engine, "a" * 64, []) == frozenset()


def test_the_digests_are_those_of_the_files_that_were_read(scene: Scene) -> None:
    # Given an item scored, one rejected after it was read, one rejected unread and one open
    batch, (chunk,) = scene.open(4)
    claim = scene.claim(chunk)
    scene.record(
        claim,
        scene.scored(claim.items[0]),
        Rejected(item_id=claim.items[1].item_id, reason="truncated", image_digest="e" * 64),
        Rejected(item_id=claim.items[2].item_id, reason="missing_image"),
    )

    # If the digests are read, in pages of one
    # Then the two that were read are there
    assert list(iter_digests(scene.engine, batch, page=1)) == [("0/0.jpg", "b" * 64), ("0/1.jpg", "e" * 64)]


@pytest.mark.parametrize(
    ("change", "value"),
    [("probabilities", (1.0,)), ("probabilities", (float("nan"),) * 7), ("malignant_score", float("inf"))],
)
def test_what_is_no_verdict_never_reaches_the_ledger(change: str, value: object) -> None:
    # Given a verdict with a number missing or not finite
    from db.results import ResultRow

    numbers = {"probabilities": (0.0,) * 7, "malignant_score": 0.5, change: value}

    # If a result is made of it
    # Then it is refused
    with pytest.raises(ValueError, match="A result has"):
        ResultRow(
            input_digest="d",
            model_digest="a",
            diagnosis="mel",
            confidence=0.5,
            referred=False,
            engine="test",
            **numbers,  # type: ignore[arg-type]
        )
