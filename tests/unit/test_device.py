"""Devices: which GPU a process takes, how many images it takes at once, and what happens where they do not fit."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model import device
from model.device import find_batch_size, keep_memory, prepare_device
from model.errors import OutOfMemory
from worker.gpu import list_gpus, take_gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def driver(tmp_path: Path) -> dict[str, str]:
    """An environment whose driver tells of three GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\nGPU-c\\n'\n", encoding="utf-8")
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


_FAULTS = """
import resource, sys
import numpy as np
if sys.argv[1] == "kept":
    from model.device import keep_memory
    assert keep_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Only glibc's malloc can be told; see the next test.")
def test_memory_that_was_freed_is_taken_again_and_not_cleared_anew() -> None:
    # If fifty arrays of 40 MB are made, one after another
    faults = {
        how: int(subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("given back", "kept")
    }

    # Then all are the same pages
    assert faults["kept"] < faults["given back"] / 10


def test_a_c_library_that_cannot_be_told_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())

    assert not keep_memory()


def test_each_process_takes_a_gpu_of_its_own_and_they_take_turns(driver: dict[str, str]) -> None:
    taken = []
    for index in range(4):
        environment = dict(driver)
        assert len(take_gpu(environment, index)) == 3
        taken.append(environment["CUDA_VISIBLE_DEVICES"])

    assert taken == ["GPU-a", "GPU-b", "GPU-c", "GPU-a"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("2,3", ["2", "3"]), ("GPU-c", ["GPU-c"]), ("", []), ("-1", [])],
)
def test_only_gpus_that_are_allowed_are_taken(driver: dict[str, str], visible: str, expected: list[str]) -> None:
    environment = driver | {"CUDA_VISIBLE_DEVICES": visible}

    assert list_gpus(environment) == expected
    take_gpu(environment, 1)
    assert environment["CUDA_VISIBLE_DEVICES"] == (expected[1 % len(expected)] if expected else visible)


@pytest.mark.parametrize("answer", ["exit 9", "echo; echo"])
def test_a_driver_that_fails_or_has_none_hides_nothing(tmp_path: Path, answer: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    assert take_gpu(environment, 0) == []
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert take_gpu({"PATH": str(tmp_path / "empty")}, 0) == []


def test_every_gpu_may_grow_and_none_is_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    grown: list[str] = []
    gpus: list[str] = []
    config = SimpleNamespace(
        list_physical_devices=lambda _kind: gpus,
        experimental=SimpleNamespace(
            set_memory_growth=lambda gpu, _on: grown.append(gpu),
            get_memory_info=lambda _name: {"current": 7, "peak": 9},
        ),
    )
    monkeypatch.setattr(device, "_tensorflow", lambda: SimpleNamespace(config=config))

    assert (prepare_device(), device.memory_in_use(), grown) == ("cpu", None, [])
    gpus.extend(["first", "second"])
    assert (prepare_device(), device.memory_in_use(), grown) == ("gpu", 7, ["first", "second"])


def score_like(seconds: Callable[[int], float], fits: int) -> tuple[Callable[[int], None], Callable[[], float]]:
    """Make a device that takes so long for so many images, and a clock that goes by it."""
    now = [0.0]

    def score(size: int) -> None:
        if size > fits:
            raise OutOfMemory(f"{size}")
        now[0] += seconds(size)

    return score, lambda: now[0]


@pytest.mark.parametrize(
    ("seconds", "fits", "expected"),
    [
        # A start that costs as much as 64 images: each doubling is worth less, the last is not worth 5 %.
        (lambda size: 64 + size, 10_000, 512),
        (lambda size: 4 + size, 10_000, 64),
        # No gain at all.
        (lambda size: size, 10_000, 8),
        # What does not fit is not taken, and less than the smallest is found.
        (lambda size: 64 + size, 100, 64),
        (lambda size: 64 + size, 5, 4),
        (lambda size: 64 + size, 1, 1),
    ],
)
def test_the_batch_grows_as_long_as_it_is_worth_it_and_fits(
    seconds: Callable[[int], float], fits: int, expected: int
) -> None:
    score, clock = score_like(seconds, fits)

    assert find_batch_size(score, clock=clock) == expected


def test_a_device_that_takes_not_even_one_image_is_an_error() -> None:
    score, clock = score_like(lambda size: size, 0)

    with pytest.raises(OutOfMemory):
        find_batch_size(score, clock=clock)


class Narrow:
    """A compiled network that has room for so many images, as TensorFlow says it."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.seen: list[int] = []

    def __call__(self, images: Any, _metadata: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        self.seen.append(len(images))
        if len(images) > self.fits:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return tf.cast(images[:, 0, 0, :1], tf.float32), tf.zeros(len(images))


def narrow_engine(fits: int) -> tuple[Any, Narrow]:
    from model.engine import FrozenGraph

    engine = FrozenGraph.__new__(FrozenGraph)
    engine.device, engine.batch_size = "gpu", 16
    engine._function = Narrow(fits)
    return engine, engine._function


def test_images_that_do_not_fit_at_once_are_scored_in_halves_from_then_on() -> None:
    # Given a device with room for 5 images, and 16 of them
    engine, network = narrow_engine(5)
    images = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1).repeat(3, axis=3)

    # If they are scored
    posteriors, distances, _ = engine.run(images, np.zeros((16, 1), np.float32))

    # Then all were, in order, and the next batch is smaller
    assert posteriors[:, 0].tolist() == list(range(16))
    assert len(distances) == 16
    assert network.seen == [16, 8, 4, 4, 4, 4]
    assert engine.batch_size == 4


def test_one_image_that_does_not_fit_is_an_error_that_says_so() -> None:
    engine, _ = narrow_engine(0)

    with pytest.raises(OutOfMemory, match="1 images at once do not fit the memory of the gpu"):
        engine.run(np.zeros((2, 1, 1, 3), np.uint8), np.zeros((2, 1), np.float32))
