"""Confirmed diagnoses, on both databases."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from db.batches import finish_loading
from db.chunks import Scored
from db.erasure import forget_patient
from db.errors import UnknownBatch
from db.labels import Labelled, LabelRow, add_labels, confirmed_images

if TYPE_CHECKING:
    from tests.conftest import Scene


def row(
    image_id: str, dx: str = "nv", dx_type: str = "histo", *, line: int = 2, labelled_by: str = "Dr. Who"
) -> LabelRow:
    return LabelRow(
        line=line, image_id=image_id, dx=dx, dx_type=dx_type, labelled_by=labelled_by, labelled_on="2026-01-31"
    )


def screened(scene: Scene, *lesions: str | None, again: bool = False) -> int:
    """Open a batch of images i0, i1 … and screen it; the bytes of two images never agree."""
    items = [
        replace(scene.item(f"{n}.png"), image_id=f"i{n}", lesion_id=lesion, patient_ref=f"p{n}")
        for n, lesion in enumerate(lesions)
    ]
    batch = scene.load(items)
    finish_loading(scene.engine, batch, f"{batch:064x}")
    claim = scene.claim(scene.chunks(batch)[0])
    outcomes = []
    for number, one in enumerate(claim.items):
        result = scene.scored(one, f"{number:064x}", known=again)
        outcomes.append(
            Scored(
                item_id=result.item_id,
                image_digest=f"{number:064x}",
                input_digest=result.input_digest,
                result=result.result,
            )
        )
    scene.record(claim, *outcomes)
    return batch


def test_labels_are_added_once_and_what_cannot_be_matched_is_named(scene: Scene) -> None:
    # Given a screened batch, in which one image has its name twice
    batch = screened(scene, None, None, None)
    scene.sql("UPDATE item SET image_id = 'i1' WHERE image_id = 'i2'")
    rows = [row("i0", line=2), row("i1", line=3), row("i9", line=4)]

    # If a file is fed back twice
    first = add_labels(scene.engine, batch, rows, "me")
    again = add_labels(scene.engine, batch, rows, "me")

    # Then nothing is there twice, and no image is guessed
    odd = ((3, "ambiguous_image"), (4, "unknown_image"))
    assert first == Labelled(added=1, known=0, problems=odd)
    assert again == Labelled(added=0, known=1, problems=odd)
    assert scene.sql("SELECT action, detail FROM audit WHERE action = 'label_batch'") == [("label_batch", "1 labels")]
    with pytest.raises(UnknownBatch):
        add_labels(scene.engine, 99, rows, "me")


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ([("mel", "histo")], "mel"),
        ([("nv", "follow_up"), ("mel", "histo")], "mel"),
        ([("mel", "histo"), ("nv", "consensus"), ("bkl", "follow_up")], "mel"),
        ([("nv", "consensus"), ("mel", "confocal")], "mel"),
        ([("mel", "consensus"), ("nv", "follow_up")], "mel"),
        ([("mel", "histo"), ("mel", "histo")], "mel"),
        ([("mel", "histo"), ("nv", "histo")], None),
        ([("nv", "consensus"), ("bkl", "consensus"), ("mel", "histo")], "mel"),
    ],
)
def test_the_best_founded_diagnosis_counts_and_nobody_guesses(
    scene: Scene, said: list[tuple[str, str]], taken: str | None
) -> None:
    batch = screened(scene, None)

    for number, (dx, dx_type) in enumerate(said):
        add_labels(scene.engine, batch, [row("i0", dx, dx_type, labelled_by=f"Dr. {number}")], "me")

    confirmed = confirmed_images(scene.engine)
    assert [image.dx for image in confirmed.images] == ([taken] if taken else [])
    assert len(confirmed.conflicting) == (0 if taken else len(said))


def test_images_of_one_lesion_must_agree(scene: Scene) -> None:
    # Given two images of a lesion whose histologies differ, two of another of which one has histology, and one without
    batch = screened(scene, "L1", "L1", "L2", "L2", None)
    diagnoses = [("i0", "mel", "histo"), ("i1", "nv", "histo"), ("i2", "bcc", "histo"), ("i3", "nv", "follow_up")]
    add_labels(scene.engine, batch, [*(row(*each) for each in diagnoses), row("i4")], "me")

    # If what can be learned from is asked for
    confirmed = confirmed_images(scene.engine, batch)

    # Then it is the histology of the one, and nothing of the other
    assert [(image.path, image.dx) for image in confirmed.images] == [("2.png", "bcc"), ("4.png", "nv")]
    assert len(confirmed.conflicting) == 3


def test_an_image_in_two_batches_is_one_image(scene: Scene) -> None:
    # Given the same image in two batches, labelled in each
    first, second = screened(scene, None), screened(scene, None, again=True)
    for batch, dx_type in ((first, "consensus"), (second, "histo")):
        add_labels(scene.engine, batch, [row("i0", "mel" if dx_type == "histo" else "nv", dx_type)], "me")

    # If what can be learned from is asked for
    # Then it is there once, with the better diagnosis
    assert [image.dx for image in confirmed_images(scene.engine).images] == ["mel"]
    assert [image.dx for image in confirmed_images(scene.engine, first).images] == ["nv"]


def test_an_image_that_nobody_read_is_not_learned_from(scene: Scene) -> None:
    batch = scene.load([replace(scene.item("a.png"), image_id="i0")])
    finish_loading(scene.engine, batch, "f" * 64)
    add_labels(scene.engine, batch, [row("i0")], "me")

    confirmed = confirmed_images(scene.engine)

    assert (confirmed.images, confirmed.unread) == ((), 1)


def test_a_patient_that_is_forgotten_takes_the_labels_along(scene: Scene) -> None:
    batch = screened(scene, None, None)
    add_labels(scene.engine, batch, [row("i0"), row("i1")], "me")

    forget_patient(scene.engine, "p0", "officer", remove_file=lambda _path: None)

    assert [image.path for image in confirmed_images(scene.engine).images] == ["1.png"]
