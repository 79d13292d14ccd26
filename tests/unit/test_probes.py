"""A grey card, a page of text and noise go to a person: the shipped model refers them, whatever their score."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.artifact import shipped_artifact
from model.classifier import Classifier
from model.images import encode_image
from model.metadata import PatientMetadata

Pixels: TypeAlias = NDArray[np.uint8]
#: As HAM10000's images are published.
WIDTH, HEIGHT = 600, 450
#: Drawings of each kind.
VARIANTS = 12
WORDS = ("the", "patient", "lesion", "margin", "of", "report", "and", "biopsy", "was", "examined", "histology", "on")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(shipped_artifact())


def grey_card(generator: np.random.Generator) -> Pixels:
    """A uniform card under even light, with a sensor's noise; 18 % grey and lighter and darker ones."""
    shade = generator.uniform(60, 220)
    noise = generator.normal(0, 2, (HEIGHT, WIDTH, 1))
    return np.clip(shade + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)


def page_of_text(generator: np.random.Generator) -> Pixels:
    """Black lines on paper."""
    page = Image.new("RGB", (WIDTH, HEIGHT), (int(generator.integers(235, 256)),) * 3)
    pen, size = ImageDraw.Draw(page), int(generator.integers(12, 26))
    for top in range(20, HEIGHT - 30, size + 6):
        line = " ".join(generator.choice(WORDS, 14))
        pen.text((25, top), line, fill=(20, 20, 20), font=ImageFont.load_default(size))
    return np.asarray(page)


def noise(generator: np.random.Generator) -> Pixels:
    """Every pixel drawn for itself."""
    return generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("draw", [grey_card, page_of_text, noise], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_what_shows_no_skin_is_referred(
    classifier: Classifier, draw: Callable[[np.random.Generator], Pixels], image_format: str
) -> None:
    # Given a few of a kind, as files
    files = [encode_image(draw(np.random.default_rng(seed)), image_format) for seed in range(VARIANTS)]

    # If they are scored with a patient known and with none
    images = np.stack([classifier.decode(data) for data in files])
    known = PatientMetadata(age=50, sex="female", localization="back")
    said = [one for patient in (known, PatientMetadata()) for one in classifier.classify(images, [patient] * VARIANTS)]

    # Then every one goes to a person
    assert [one.referred for one in said] == [True] * 2 * VARIANTS
