"""Devices: what TensorFlow computes on, how much of it is used, and how many images it takes at once."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from model.errors import OutOfMemory

if TYPE_CHECKING:
    from types import ModuleType

DeviceKind = Literal["gpu", "cpu"]

#: On a CPU 8 images keep the activations in the cache: a fifth faster than 16 and more.
CPU_BATCH_SIZE: Final = 8
#: More gives nothing on the GPUs that were measured, and makes results come in gulps.
LARGEST_BATCH_SIZE: Final = 512
#: A batch twice as large must be worth so much more images a second.
_WORTH: Final = 1.05
#: Of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST: Final = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep the memory that TensorFlow frees on a CPU, for its next operation. Idempotent.

    Each operation takes its output's memory anew, megabytes of it. By default the C library gives that much back to the
    system, which clears every page again: with MobileNetV3Large a tenth to a third of a batch's time, and of a training
    step more. One arena, as the others are bounded by 64 MB. What a process uses at most does not change; it keeps it.

    Returns:
        Whether it is so now; False where the C library is not glibc.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    options = ((_TRIM_THRESHOLD, _MOST), (_ARENA_MAX, 1), (_MMAP_THRESHOLD, _MOST))
    return all(set_option(name, value) == 1 for name, value in options)


def prepare_device() -> DeviceKind:
    """Let TensorFlow take a GPU's memory as it needs it; by default it takes all of it. Idempotent.

    Without a GPU the computer's own memory is prepared, see `keep_memory`.

    Returns:
        What it will compute on.
    """
    tensorflow = _tensorflow()
    gpus = tensorflow.config.list_physical_devices("GPU")
    for gpu in gpus:
        tensorflow.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003 - TensorFlow's own signature
    if gpus:
        return "gpu"
    keep_memory()
    return "cpu"


def memory_in_use() -> int | None:
    """Say how much of the GPU's memory TensorFlow uses.

    Returns:
        Bytes, or None on a CPU.
    """
    tensorflow = _tensorflow()
    if not tensorflow.config.list_physical_devices("GPU"):
        return None
    return int(tensorflow.config.experimental.get_memory_info("GPU:0")["current"])


def find_batch_size(
    score: Callable[[int], object],
    *,
    smallest: int = CPU_BATCH_SIZE,
    largest: int = LARGEST_BATCH_SIZE,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Double the batch as long as it is worth it and fits.

    Args:
        score: Scores so many images; raises `OutOfMemory` where they do not fit.
        smallest: Where to begin.
        largest: Where to end.
        clock: Seconds.

    Returns:
        The smallest size within 5 % of the best rate on the way; less than `smallest` where even that does not fit.

    Raises:
        OutOfMemory: If not even one image fits.
    """
    best, best_rate, size = 0, 0.0, smallest
    while size <= largest:
        try:
            # The first pass of a size plans its memory and chooses its kernels.
            score(size)
            begun = clock()
            score(size)
            rate = size / (clock() - begun)
        except OutOfMemory:
            if best:
                break
            if size == 1:
                raise
            size, largest = size // 2, size // 2
            continue
        if rate < best_rate * _WORTH:
            break
        best, best_rate, size = size, rate, size * 2
    return best


def _tensorflow() -> ModuleType:
    import tensorflow as tf

    return tf
