"""A grey card, a page of text and noise go to a person: the shipped model refers them, whatever their score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from model.artifact import shipped_artifact
from model.classifier import Classifier
from model.images import encode_image
from model.metadata import PatientMetadata
from tests.probes import Pixels, grey_card, noise, page_of_text

#: Drawings of each kind.
VARIANTS = 12


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(shipped_artifact())


@pytest.mark.parametrize("draw", [grey_card, page_of_text, noise], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_what_shows_no_skin_is_referred(
    classifier: Classifier, draw: Callable[[np.random.Generator], Pixels], image_format: str
) -> None:
    # Given a few of a kind, as files
    files = [encode_image(draw(np.random.default_rng(seed)), image_format) for seed in range(VARIANTS)]

    # If they are scored with a patient known and with none
    images = np.stack([classifier.decode(data).pixels for data in files])
    known = PatientMetadata(age=50, sex="female", localization="back")
    said = [one for patient in (known, PatientMetadata()) for one in classifier.classify(images, [patient] * VARIANTS)]

    # Then every one goes to a person
    assert [one.referred for one in said] == [True] * 2 * VARIANTS
