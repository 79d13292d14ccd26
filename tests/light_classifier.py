"""A classifier without TensorFlow: the mean of an image's bytes decides, and a test's file names slow it down."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.classifier import Prediction
from model.images import decode_image
from model.metadata import MetadataEncoding, PatientMetadata


class LightClassifier:
    """Scores by brightness; deterministic, so two runs of one image agree."""

    engine_name = "light"
    metadata_encoding: MetadataEncoding = "small"

    def __init__(self, digest: str) -> None:
        self.digest = digest

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Take the digest from the folder's name; there is nothing to load."""
        return cls(folder.name)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode as the real one does, and die of the one image that a test calls deadly."""
        pixels = decode_image(data, 32)
        if "LIGHT_DEADLY" in os.environ and int(pixels.mean()) == int(os.environ["LIGHT_DEADLY"]):
            os.kill(os.getpid(), 9)
        return pixels

    def classify(self, images: NDArray[np.uint8], patients: Sequence[PatientMetadata]) -> list[Prediction]:
        """Score by brightness, as slowly as LIGHT_SECONDS (a call) and LIGHT_IMAGE_SECONDS (an image) say."""
        assert len(images) == len(patients)
        time.sleep(float(os.environ.get("LIGHT_SECONDS", "0")))
        time.sleep(float(os.environ.get("LIGHT_IMAGE_SECONDS", "0")) * len(images))
        return [self._predict(float(image.mean()) / 255) for image in images]

    @staticmethod
    def _predict(brightness: float) -> Prediction:
        rest = (1 - brightness) / 6
        return Prediction(
            probabilities=(rest, rest, rest, rest, brightness, rest, rest),
            diagnosis="mel",
            confidence=brightness,
            malignant_score=brightness,
            prioritised=brightness > 0.5,
            referred=brightness > 0.9,
            refer_reason="low_confidence" if brightness > 0.9 else None,
        )
