"""LiteRT inference on CPUs: the frozen graph through XNNPACK, and whether it is to be preferred."""

from __future__ import annotations

import statistics
import time
from importlib.util import find_spec
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from model.batches import share_cores, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ai_edge_litert.interpreter import Interpreter

    from model.converted import ConvertedGraphs
    from model.engine import Answer, Engine, FrozenGraph
    from model.precision import Precision

#: Largest difference in probability from TensorFlow: float32 kernels of two libraries stay a hundred times under it.
AGREEMENT: Final = 1e-4
#: Distances are tens of units; relative.
_DISTANCE_AGREEMENT: Final = 1e-3
#: Images at once where nobody says: a twentieth faster than 8, as the caches hold the batches of all cores.
BATCH_SIZE: Final = 4
#: Rounds in which both are timed, in turn.
_ROUNDS: Final = 5


class LiteRT:
    """Maps decoded images and encoded metadata to posteriors, distances and evidence, as `FrozenGraph` does.

    It runs batches of one size, whose memory is planned once: a short one is filled up. Each batch that is worked on
    has an interpreter of its own, see `model.batches.share_cores`.

    Args:
        frozen: The graph that it is made from.
        converted: Where conversions are kept; None converts anew.
        batch_size: How many images to give it at once.

    Attributes:
        batches_at_once: How many interpreters it has.
        name: Stored with each result.
        device: "cpu".
        precision: "float32".
        batch_size: How many images to give it at once.

    Raises:
        ImportError: If the extra `accelerators` is not installed.
        ValueError: If it cannot compute this network.
        RuntimeError: If it cannot compute this network.
    """

    name: Final = "litert"
    device: Final = "cpu"
    precision: Precision = "float32"

    def __init__(
        self, frozen: FrozenGraph, converted: ConvertedGraphs | None = None, batch_size: int = BATCH_SIZE
    ) -> None:
        self.batch_size = batch_size
        self.batches_at_once, threads = share_cores()
        flatbuffer = frozen.convert() if converted is None else converted.convert(frozen)
        made = [_interpret(flatbuffer, batch_size, threads) for _ in range(self.batches_at_once)]
        # The conversion keeps neither names nor order; each has another number of dimensions.
        self._inputs = _indices(made[0].get_input_details(), (4, 2))
        self._outputs = _indices(made[0].get_output_details(), (2, 1, 3))
        # An interpreter has one set of tensors: whoever runs a batch takes one out.
        self._idle: SimpleQueue[Interpreter] = SimpleQueue()
        for one in made:
            self._idle.put(one)

    def run(self, images: NDArray[np.uint8], metadata: NDArray[np.float32]) -> Answer:
        """Score a batch, see `FrozenGraph.run`."""
        starts = range(0, len(images), self.batch_size)
        parts = [self._run((images[at : at + self.batch_size], metadata[at : at + self.batch_size])) for at in starts]
        posteriors, distances, *evidence = (np.concatenate(some) for some in zip(*parts, strict=True))
        return posteriors, distances, evidence[0] if evidence else None

    def _run(self, given: tuple[NDArray[Any], NDArray[Any]]) -> list[NDArray[np.float32]]:
        count = len(given[0])
        interpreter = self._idle.get()
        try:
            for index, values in zip(self._inputs, given, strict=True):
                missing = self.batch_size - count
                filled = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values
                interpreter.set_tensor(index, filled)
            interpreter.invoke()
            return [interpreter.get_tensor(index)[:count] for index in self._outputs]
        finally:
            self._idle.put(interpreter)

    def fit_batch_size(self, image: NDArray[np.uint8], metadata: NDArray[np.float32]) -> None:
        """Leave it as it is: on a CPU it is known."""


def _interpret(flatbuffer: bytes, batch_size: int, threads: int) -> Interpreter:
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_content=flatbuffer, num_threads=threads)
    for one in made.get_input_details():
        made.resize_tensor_input(one["index"], (batch_size, *one["shape"][1:]))
    made.allocate_tensors()
    return made


def _indices(tensors: Sequence[dict[str, Any]], dimensions: Sequence[int]) -> list[int]:
    found = {len(one["shape"]): one["index"] for one in tensors}
    return [found[count] for count in dimensions if count in found]


def prefer_litert(
    frozen: FrozenGraph,
    samples: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]],
    converted: ConvertedGraphs | None = None,
    batch_size: int = BATCH_SIZE,
) -> Engine:
    """Take LiteRT where it is installed, gives the same answers and is faster on this machine; else TensorFlow.

    Args:
        frozen: The graph.
        samples: Images and metadata, batch by batch.
        converted: Where conversions are kept; None converts anew.
        batch_size: How many images LiteRT is to be given at once.

    Returns:
        One of the two.
    """
    if frozen.device != "cpu" or frozen.precision != "float32" or find_spec("ai_edge_litert") is None:
        return frozen
    try:
        other = LiteRT(frozen, converted, batch_size)
    except (ValueError, RuntimeError):
        # An operation that it does not know, or cannot lay out.
        return frozen
    if not agree(frozen, other, samples):
        return frozen
    # Batches as work has them, whole and side by side: LiteRT fills a shorter one up, and would be timed for images
    # that nobody gave it, on one of its interpreters.
    count = max(one.batch_size * one.batches_at_once for one in (frozen, other))
    images, metadata = (np.resize(part, (count, *part.shape[1:])) for part in samples[0])
    return other if is_faster(_working(frozen), _working(other), (images, metadata)) else frozen


def _working(engine: Engine) -> Callable[[NDArray[Any], NDArray[Any]], object]:
    return lambda images, metadata: side_by_side(
        engine, len(images), lambda some: engine.run(images[some], metadata[some])
    )


def agree(one: Engine, other: Engine, samples: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> bool:
    """Say whether two engines give the same answers.

    Args:
        one: The one to be trusted.
        other: The other.
        samples: Images and metadata, batch by batch.

    Returns:
        Whether no probability differs by more than `AGREEMENT`; False where anything is not a number.
    """
    for images, metadata in samples:
        expected, found = one.run(images, metadata), other.run(images, metadata)
        if not np.allclose(found[0], expected[0], rtol=0, atol=AGREEMENT):
            return False
        if not np.allclose(found[1], expected[1], rtol=_DISTANCE_AGREEMENT, atol=0):
            return False
    return True


def is_faster(
    one: Callable[..., object],
    other: Callable[..., object],
    sample: tuple[NDArray[np.uint8], NDArray[np.float32]],
    clock: Callable[[], float] = time.perf_counter,
) -> bool:
    """Time two engines in turn, so that whatever else the machine does slows both.

    Args:
        one: What runs now.
        other: What may run instead.
        sample: Images and metadata.
        clock: Seconds.

    Returns:
        Whether the median of the rounds' ratios is below 1.
    """

    def seconds(run: Callable[..., object]) -> float:
        begun = clock()
        run(*sample)
        return clock() - begun

    return statistics.median(seconds(other) / seconds(one) for _ in range(_ROUNDS)) < 1
