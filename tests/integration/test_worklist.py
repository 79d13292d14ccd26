"""The worklist's ranking, on both databases."""

from __future__ import annotations

import dataclasses
import uuid
from typing import TYPE_CHECKING

from db.batches import ItemRow, finish_loading
from db.chunks import Rejected
from db.worklist import (
    count_diagnoses,
    count_in_bins,
    count_lesions,
    iter_unread,
    rank_lesions,
    read_images,
    sum_probabilities,
)

if TYPE_CHECKING:
    from tests.conftest import Scene


def _image(path: str, patient: str | None, lesion: str | None) -> ItemRow:
    return ItemRow(path=path, size=1, patient_ref=patient, lesion_id=lesion, age=40.0, image_id=path)


def _screen(scene: Scene, rows: list[ItemRow], scores: list[float | None]) -> int:
    batch = scene.load(rows)
    finish_loading(scene.engine, batch, uuid.uuid4().hex)
    (chunk,) = scene.chunks(batch)
    claim = scene.claim(chunk)
    scene.record(
        claim,
        *(
            Rejected(item_id=one.item_id, reason="truncated")
            if score is None
            else scene.scored(one, score=score, referred=score == 0.3)
            for one, score in zip(claim.items, scores, strict=True)
        ),
    )
    return batch


ROWS = [
    *(_image("a", "P1", "L1"), _image("b", "P1", "L1")),
    # The same lesion id of another patient is another lesion.
    _image("c", "P2", "L1"),
    *(_image("d", None, None), _image("e", None, None)),
    *(_image("f", None, "L9"), _image("g", None, "L9")),
    _image("h", "P3", None),
]
SCORES: list[float | None] = [0.1, 0.9, 0.5, 0.5, 0.3, 0.2, 0.7, None]


def test_a_lesion_ranks_by_its_worst_image_and_ties_go_to_what_was_found_first(scene: Scene) -> None:
    batch = _screen(scene, ROWS, SCORES)

    ranked = rank_lesions(scene.engine, batch, 100)
    names = {item: image.path for item, image in read_images(scene.engine, batch, sum(ranked, ())).items()}

    assert [[names[one] for one in lesion] for lesion in ranked] == [["b", "a"], ["g", "f"], ["c"], ["d"], ["e"]]
    assert rank_lesions(scene.engine, batch, 2) == ranked[:2]
    assert count_lesions(scene.engine, batch) == 5


def test_images_are_read_with_what_a_reader_wants_and_of_their_batch_alone(scene: Scene) -> None:
    batch = _screen(scene, ROWS, SCORES)
    other, _ = scene.open(1)
    ((item,),) = scene.sql("SELECT id FROM item WHERE batch_id = :b AND path = 'e'", b=batch)

    (image,) = read_images(scene.engine, batch, [int(str(item))]).values()

    assert (image.path, image.malignant_score, image.referred, image.refer_reason) == ("e", 0.3, True, "low_confidence")
    assert image.probabilities[4] == 0.3
    assert read_images(scene.engine, other, [int(str(item))]) == {}


def test_what_has_no_verdict_is_listed_by_reason_whatever_the_page(scene: Scene) -> None:
    rows = [*ROWS, *(dataclasses.replace(scene.item(f"r{n}"), rejected="missing_image") for n in range(3))]
    batch = _screen(scene, rows, SCORES)

    listed = [(row.reason, row.path) for row in iter_unread(scene.engine, batch, page=2)]

    assert listed == [("missing_image", "r0"), ("missing_image", "r1"), ("missing_image", "r2"), ("truncated", "h")]


def test_the_overviews_sums_count_scored_images_alone(scene: Scene) -> None:
    batch = _screen(scene, ROWS, SCORES)

    scores, confidences = count_in_bins(scene.engine, batch, 10)

    assert scores == [0, 1, 1, 1, 0, 2, 0, 1, 0, 1]
    assert confidences == [0, 0, 0, 0, 0, 7, 0, 0, 0, 0]
    assert count_diagnoses(scene.engine, batch)["mel"] == 7
    assert abs(sum_probabilities(scene.engine, batch)[4] - 3.2) < 1e-9
    empty, _ = scene.open(1)
    assert count_in_bins(scene.engine, empty, 2) == ([0, 0], [0, 0])
    assert (rank_lesions(scene.engine, empty, 9), count_lesions(scene.engine, empty)) == ([], 0)
