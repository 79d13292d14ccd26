"""Where an image's milliseconds go: each step by itself, and what is left of the measured rate."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from db.pictures import thumb_path
from model.batches import side_by_side
from model.images import read_image_bytes
from model.metadata import UNKNOWN
from model.pictures import draw_thumbnail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from model.classifier import Classifier, Prediction
    from tests.light_classifier import LightClassifier
    from worker.shelf import Shelf


def account(steps: Mapping[str, float], ledger: Mapping[str, Any], rate: float) -> dict[str, float]:
    """Say where an image's time goes.

    Args:
        steps: From `time_steps`.
        ledger: From `measure_ledger.measure`.
        rate: Images a second, end to end.

    Returns:
        Step to core-milliseconds an image; the last one is what the cores' time at that rate has beyond the steps.
    """
    steps = {
        **steps,
        "ledger: claim and record": 1000 / ledger["recorded_a_second"],
        "ledger: load": 1000 / ledger["loaded_a_second"],
        "ring": 1000 / ledger["rung_a_second"],
    }
    all_cores = 1000 * len(os.sched_getaffinity(0)) / rate
    return {**steps, "wait, and the processes around the worker": all_cores - sum(steps.values())}


def time_steps(classifier: Classifier | LightClassifier, files: Sequence[Path], shelf: Shelf) -> dict[str, float]:
    """Time what a worker does with an image, each step by itself.

    Args:
        classifier: The model.
        files: Images of one folder.
        shelf: Where their pictures are written.

    Returns:
        Step to core-milliseconds an image.
    """
    spent: dict[str, float] = {}

    @contextmanager
    def timed(step: str, cores: int = 1) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        spent[step] = spent.get(step, 0) + 1000 * cores * (time.perf_counter() - begun) / len(files)

    with timed("read"):
        found = [read_image_bytes(path.parent, path.name, max_bytes=path.stat().st_size) for path in files]
    with timed("digest"):
        digests = [hashlib.sha256(data).hexdigest() for data in found]
    with timed("decode and resize"):
        images = [classifier.decode(data) for data in found]
    pixels = np.stack([image.pixels for image in images])
    with timed("network and verdict", len(os.sched_getaffinity(0))):
        predictions = classify_all(classifier, pixels)
    with timed("pictures of what is flagged or referred"):
        for digest, image, one in zip(digests, images, predictions, strict=True):
            if one.prioritised or one.referred:
                shelf.write(thumb_path(digest), draw_thumbnail(image))
    return spent


def classify_all(classifier: Classifier | LightClassifier, images: NDArray[np.uint8]) -> list[Prediction]:
    """Score images as a worker does, and of nobody: as many batches at once as the classifier does best with."""
    parts = side_by_side(
        classifier, len(images), lambda some: classifier.classify(images[some], [UNKNOWN] * len(images[some]))
    )
    return list(chain.from_iterable(parts))
