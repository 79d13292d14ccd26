"""Where confirmed diagnoses contradict a model, on both databases."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from db.batches import finish_loading
from db.chunks import Scored
from db.contradictions import judge_by_labels
from db.labels import LabelRow, add_labels

if TYPE_CHECKING:
    from tests.conftest import Scene

MODEL, OTHER = "a" * 64, "e" * 64


def screen(scene: Scene, confidences: list[float], *, model: str = MODEL, count: int | None = None) -> int:
    """Screen images i0, i1 … that are all diagnosed as melanoma, with these confidences."""
    names = [f"i{number}" for number in range(count or len(confidences))]
    batch = scene.load([replace(scene.item(f"{name}.png"), image_id=name) for name in names], model=model)
    finish_loading(scene.engine, batch, f"{batch:064x}")
    claim = scene.claim(scene.chunks(batch)[0])
    outcomes = []
    for number, (one, confidence) in enumerate(zip(claim.items, confidences, strict=False)):
        digest = f"{number:064x}"
        result = replace(scene.verdict(digest, model=model, referred=number == 1), confidence=confidence)
        outcomes.append(Scored(item_id=one.item_id, image_digest=digest, input_digest=digest, result=result))
    scene.record(claim, *outcomes, model=model)
    return batch


def confirm(scene: Scene, batch: int, *diagnoses: tuple[str, str]) -> None:
    rows = [
        LabelRow(line=2, image_id=image, dx=dx, dx_type="histo", labelled_by="who", labelled_on="2026-01-31")
        for image, dx in diagnoses
    ]
    add_labels(scene.engine, batch, rows, "me")


def test_the_most_confident_contradictions_come_first_and_what_agrees_is_counted(scene: Scene) -> None:
    # Given five images that the model calls melanoma, of which one is confirmed and three are not
    batch = screen(scene, [0.6, 0.9, 0.7, 0.99, 0.9])
    confirm(scene, batch, ("i0", "nv"), ("i1", "bkl"), ("i2", "nv"), ("i3", "mel"))

    judged = judge_by_labels(scene.engine, MODEL, 2)

    assert (judged.images, judged.contradicted) == (4, 3)
    assert [(one.image_id, one.confidence) for one in judged.worst] == [("i1", 0.9), ("i2", 0.7)]
    worst = judged.worst[0]
    assert (worst.dx, worst.dx_type, worst.diagnosis, worst.referred) == ("bkl", "histo", "mel", True)
    assert (worst.path, worst.input_digest) == ("i1.png", f"{1:064x}")


def test_of_equal_confidence_the_image_that_was_found_first_is_kept(scene: Scene) -> None:
    batch = screen(scene, [0.9, 0.9, 0.9])
    confirm(scene, batch, *((f"i{number}", "nv") for number in range(3)))

    assert [one.image_id for one in judge_by_labels(scene.engine, MODEL, 2).worst] == ["i0", "i1"]


def test_a_diagnosis_of_one_models_batch_judges_another_model_that_screened_the_same_input(scene: Scene) -> None:
    # Given a diagnosis fed back to a batch of one model, and the same image screened by another
    confirm(scene, screen(scene, [0.9, 0.8]), ("i0", "nv"), ("i1", "nv"))
    screen(scene, [0.7], model=OTHER, count=2)

    judged = judge_by_labels(scene.engine, OTHER, 10)

    assert (judged.images, [one.confidence for one in judged.worst]) == (1, [0.7])


def test_diagnoses_that_contradict_each_other_judge_nobody(scene: Scene) -> None:
    batch = screen(scene, [0.9])
    confirm(scene, batch, ("i0", "nv"), ("i0", "bkl"))

    judged = judge_by_labels(scene.engine, MODEL, 10)

    assert (judged.images, judged.contradicted, judged.worst) == (0, 0, ())
