"""Batches: how a CPU's cores are shared among them, and how they are given to what scores them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

#: Most batches that a CPU works on at once: each takes memory, and LiteRT a copy of the weights for each.
_MOST_AT_ONCE: Final = 4


def share_cores() -> tuple[int, int]:
    """Say how the cores are best shared among batches.

    A core works on a batch of its own where it can: cores that work on one batch wait for the slowest of them after
    every operation, and one of them decodes an image half of the time. On two cores that is worth a tenth of the whole
    from file to verdict with TensorFlow, and 4 to 17 % with LiteRT.

    Returns:
        How many batches at once, and the threads of each.
    """
    cores = len(os.sched_getaffinity(0))
    at_once = min(cores, _MOST_AT_ONCE)
    return at_once, -(-cores // at_once)


def keep_batches_apart() -> None:
    """Let TensorFlow give each batch its share of the cores, see `share_cores`.

    To be called before TensorFlow first computes, in a process that scores and nothing else: a training step has one
    batch, and wants all cores for it. Somebody's own TF_NUM_INTRAOP_THREADS stays.
    """
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(share_cores()[1]))


class Batched(Protocol):
    """What takes images in batches, from threads."""

    @property
    def batch_size(self) -> int:
        """How many images it does best with at once."""

    @property
    def batches_at_once(self) -> int:
        """How many threads do best to give it batches at a time."""


def side_by_side(scorer: Batched, count: int, score: Callable[[slice], T]) -> list[T]:
    """Score in batches, as many at a time as the scorer does best with.

    Args:
        scorer: What is asked for the sizes.
        count: Of images.
        score: Scores a batch of them; called by threads.

    Returns:
        What `score` returned, in order.
    """
    size = scorer.batch_size
    with ThreadPoolExecutor(scorer.batches_at_once, thread_name_prefix="network") as network:
        return list(network.map(score, (slice(start, start + size) for start in range(0, count, size))))
