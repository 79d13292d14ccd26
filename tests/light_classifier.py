"""A classifier without TensorFlow: the mean of an image's bytes decides, and a test's file names slow it down."""

import ctypes
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.classifier import Prediction
from model.images import DecodedImage, decode_measured
from model.metadata import MetadataEncoding, PatientMetadata


def _kill_child() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_host() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _eat_memory() -> None:
    eaten = []
    while True:
        # Written to, or the kernel would not count it.
        eaten.append(bytearray(os.urandom(1 << 20)) * 16)


def _hang() -> None:
    # With the interpreter's lock in hand: no thread runs. Again and again, as a signal that is caught ends a sleep.
    while True:
        ctypes.PyDLL(None).sleep(3600)


_DEATHS = {"child": _kill_child, "host": _kill_host, "memory": _eat_memory, "hang": _hang}


class LightClassifier:
    """Scores by brightness; deterministic, so two runs of one image agree."""

    engine_name = "light"
    metadata_encoding: MetadataEncoding = "small"
    device = "cpu"
    precision = "float32"
    batches_at_once = 1

    def __init__(self, digest: str, batch_size: int = 8) -> None:
        self.digest = digest
        self.batch_size = batch_size
        self._calls = 0

    @classmethod
    def load(cls, folder: Path, *, precision: str, batch_size: int | None, engine: str, converted: Path) -> Self:
        """Take the digest from the folder's name; there is nothing to load."""
        assert (precision, engine) == (cls.precision, "auto")
        assert converted.is_absolute()
        return cls(folder.name, batch_size or 8)

    @staticmethod
    def memory_in_use() -> int | None:
        """Use no GPU."""
        return None

    def decode(self, data: bytes, frame: int | None = None) -> DecodedImage:
        """Decode as the real one does, and do a worker in on the one image that a test names by its brightness."""
        image = decode_measured(data, 32, frame)
        if "LIGHT_VICTIM" in os.environ and int(image.pixels.mean()) == int(os.environ["LIGHT_VICTIM"]):
            _DEATHS[os.environ["LIGHT_DEATH"]]()
        return image

    def classify(self, images: NDArray[np.uint8], patients: Sequence[PatientMetadata]) -> list[Prediction]:
        """Score by brightness, as slowly as LIGHT_SECONDS (a call) and LIGHT_IMAGE_SECONDS (an image) say.

        From the second call on it waits as long as the file LIGHT_HOLD is there.
        """
        assert len(images) == len(patients)
        self._calls += 1
        while self._calls > 1 and Path(os.environ.get("LIGHT_HOLD", os.devnull)).is_file():
            time.sleep(0.02)
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
            distance=1 - brightness,
            prioritised=brightness > 0.5,
            referred=brightness > 0.9,
            refer_reason="low_confidence" if brightness > 0.9 else None,
            evidence=np.array([[brightness, 0], [0, 0]], np.float32),
        )
