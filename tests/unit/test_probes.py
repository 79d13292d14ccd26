"""A grey card, a page of text, noise and a cat go to a person: the shipped model refers them, whatever their score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from model.artifact import shipped_artifact
from model.classifier import UNFAMILIAR_IMAGE, Classifier, Prediction
from model.images import encode_image
from model.metadata import PatientMetadata
from model.synthetic import draw_lesion
from tests.probes import DRAWN, Pixels, photographs, view_of

#: Drawings of each kind, and views of the cat.
VARIANTS = 12
#: Views of each other photograph.
VIEWS = 3
PHOTOGRAPHS = photographs()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(shipped_artifact())


def score(classifier: Classifier, images: Sequence[Pixels], image_format: str) -> list[Prediction]:
    """Score images as files, with a patient known and with none."""
    pixels = np.stack([classifier.decode(encode_image(image, image_format)).pixels for image in images])
    known = PatientMetadata(age=50, sex="female", localization="back")
    return [
        one for patient in (known, PatientMetadata()) for one in classifier.classify(pixels, [patient] * len(images))
    ]


@pytest.mark.parametrize("draw", DRAWN.values(), ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_what_shows_no_skin_is_referred(
    classifier: Classifier, draw: Callable[[np.random.Generator], Pixels], image_format: str
) -> None:
    said = score(classifier, [draw(np.random.default_rng(seed)) for seed in range(VARIANTS)], image_format)

    assert [one.referred for one in said] == [True] * 2 * VARIANTS


def test_most_lesions_of_a_synthetic_archive_are_familiar(classifier: Classifier) -> None:
    generator = np.random.default_rng(0)

    said = score(classifier, [draw_lesion(generator) for _ in range(2 * VARIANTS)], "JPEG")

    assert np.mean([one.refer_reason == UNFAMILIAR_IMAGE for one in said]) < 0.5


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_cat_is_unfamiliar_however_it_is_cut(classifier: Classifier, image_format: str) -> None:
    cat = PHOTOGRAPHS["chelsea"]

    said = score(
        classifier, [cat, *(view_of(cat, np.random.default_rng(seed)) for seed in range(VARIANTS))], image_format
    )

    assert [one.refer_reason for one in said] == [UNFAMILIAR_IMAGE] * 2 * (VARIANTS + 1)


@pytest.mark.parametrize("name", sorted(set(PHOTOGRAPHS) - {"chelsea"}))
def test_a_photograph_of_no_skin_is_unfamiliar(classifier: Classifier, name: str) -> None:
    photograph = PHOTOGRAPHS[name]

    said = score(classifier, [view_of(photograph, np.random.default_rng(seed)) for seed in range(VIEWS)], "JPEG")

    assert [one.refer_reason for one in said] == [UNFAMILIAR_IMAGE] * 2 * VIEWS
