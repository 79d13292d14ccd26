"""A contender: a Celery task an image, each of which calls `model.predict`; what a tutorial would build.

`BENCH_MODEL` names the artifact, `BENCH_BROKER` the Redis that carries tasks and answers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from celery import Celery
from celery.signals import worker_process_init

from model.artifact import read_manifest
from model.classifier import encoding_of, load_network
from model.images import decode_image
from model.metadata import UNKNOWN, encode_metadata

if TYPE_CHECKING:
    import keras

app = Celery("one_image", broker=os.environ.get("BENCH_BROKER"), backend=os.environ.get("BENCH_BROKER"))
#: What each child of the pool has loaded.
_loaded: dict[str, Any] = {}


def prepare(image: bytes, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Bring an image to what the network takes: `(1, s, s, 3)` float32 from -1 to 1."""
    return (decode_image(image, size).astype(np.float32) / 127.5 - 1)[None]


def load(folder: Path) -> tuple[keras.Model, int, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Load a network; returns it with its input size and the row of a patient of whom nothing is known."""
    manifest = read_manifest(folder)
    network, _ = load_network(folder, manifest)
    return network, manifest.network.input_size, encode_metadata([UNKNOWN], encoding_of(manifest))


def _load_in_child(**_about: object) -> None:
    # After the fork: TensorFlow does not survive one.
    _loaded["network"], _loaded["size"], _loaded["nobody"] = load(Path(os.environ["BENCH_MODEL"]))
    blank = np.zeros((1, _loaded["size"], _loaded["size"], 3), np.float32)
    _loaded["network"].predict([blank, _loaded["nobody"]], verbose=0)


def _score(path: str) -> list[float]:
    """Score one file; returns its logits."""
    pixels = prepare(Path(path).read_bytes(), _loaded["size"])
    logits: list[float] = _loaded["network"].predict([pixels, _loaded["nobody"]], verbose=0)["logits"][0].tolist()
    return logits


worker_process_init.connect(_load_in_child)
score = app.task(name="score")(_score)
