"""Where an image's milliseconds go: each step by itself, and what is left of the measured rate."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from db.pictures import map_path, thumb_path
from model.images import glance_size, read_image_bytes
from model.metadata import UNKNOWN
from model.pictures import draw_overlay, draw_thumbnail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from model.classifier import Classifier
    from tests.light_classifier import LightClassifier
    from worker.shelf import Shelf


def profile(
    classifier: Classifier | LightClassifier,
    files: Sequence[Path],
    shelf: Shelf,
    ledger: Mapping[str, Any],
    rate: float,
) -> dict[str, float]:
    """Say where an image's time goes.

    Args:
        classifier: The model, of `batch_size` images at once.
        files: Images of one folder.
        shelf: Where their pictures are written.
        ledger: From `measure_ledger.measure`.
        rate: Images a second, end to end.

    Returns:
        Step to core-milliseconds an image; the last one is what the cores' time at that rate has beyond the steps.
    """
    cores = len(os.sched_getaffinity(0))
    steps = _time_steps(classifier, files, shelf, cores)
    steps |= {
        "ledger: claim and record": 1000 / ledger["recorded_a_second"],
        "ledger: load": 1000 / ledger["loaded_a_second"],
        "ring": 1000 / ledger["rung_a_second"],
    }
    return {**steps, "wait, and the processes around the worker": 1000 * cores / rate - sum(steps.values())}


def _time_steps(
    classifier: Classifier | LightClassifier, files: Sequence[Path], shelf: Shelf, cores: int
) -> dict[str, float]:
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
        pixels = [classifier.decode(data) for data in found]
        shown = [glance_size(data) for data in found]
    predictions = []
    for start in range(0, len(files), classifier.batch_size):
        batch = np.stack(pixels[start : start + classifier.batch_size])
        with timed("network and verdict", cores):
            predictions += classifier.classify(batch, [UNKNOWN] * len(batch))
    with timed("pictures of what is flagged or referred"):
        for digest, image, size, one in zip(digests, pixels, shown, predictions, strict=True):
            if one.prioritised or one.referred:
                if one.attention is not None:
                    shelf.write(map_path(digest, classifier.digest), draw_overlay(one.attention, size))
                shelf.write(thumb_path(digest), draw_thumbnail(image, size))
    return spent
