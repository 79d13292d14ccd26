"""What decoding and network alone allow on this machine, in a process of its own that is set up as a worker's is."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from model.batches import keep_batches_apart
from model.classifier import Classifier
from tests.benchmarks.profiling import classify_all, time_steps
from worker.shelf import FolderShelf

if TYPE_CHECKING:
    from pathlib import Path

#: The child's.
_loaded: list[Classifier] = []


class Bound:
    """Decodes on all cores, and then runs the network on all cores: the most that both allow if they only shared them.

    Args:
        name: What the tables call it.
        model: The artifact.
        engine: As a worker's setting has it.
    """

    def __init__(self, name: str, model: Path, engine: Literal["auto", "tensorflow"]) -> None:
        self.name = name
        # How TensorFlow shares the cores is a process's own, and the other ways want theirs.
        self._child = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_load, initargs=(model, engine)
        )

    def __enter__(self) -> Self:
        self._child.submit(_warm_up).result()
        return self

    def __exit__(self, *_about: object) -> None:
        self._child.shutdown()

    def measure(self, files: list[Path]) -> float:
        """Return images a second."""
        return self._child.submit(_measure, files).result()

    def time_steps(self, files: list[Path], folder: Path) -> dict[str, float]:
        """Return the core-milliseconds of each step of an image; pictures are written into the folder."""
        return self._child.submit(_time_steps, files, folder).result()


def _load(model: Path, engine: Literal["auto", "tensorflow"]) -> None:
    keep_batches_apart()
    _loaded.append(Classifier.load(model, engine=engine))


def _warm_up() -> None:
    size = _loaded[0].input_size
    classify_all(_loaded[0], np.zeros((2 * _loaded[0].batch_size, size, size, 3), np.uint8))


def _measure(files: list[Path]) -> float:
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pixels = list(pool.map(lambda path: _loaded[0].decode(path.read_bytes()).pixels, files))
    classify_all(_loaded[0], np.stack(pixels))
    return len(files) / (time.perf_counter() - begun)


def _time_steps(files: list[Path], folder: Path) -> dict[str, float]:
    return time_steps(_loaded[0], files, FolderShelf(folder))
