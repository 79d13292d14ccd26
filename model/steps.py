"""One step of training, on what Keras computes with: TensorFlow, or JAX on an accelerator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from model.augmentation import Augmentation

#: Averages follow closely early on, so that the random head does not linger in them.
_FIRST_STEPS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step is taken on.

    Attributes:
        rows: `(b,)` which images.
        metadata: `(b, width)` float32, masked.
        labels: `(b,)` int64.
        drawn: What the augmentation drew.
    """

    rows: NDArray[np.intp]
    metadata: NDArray[np.float32]
    labels: NDArray[np.int64]
    drawn: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a step changes, and how.

    Attributes:
        network: The training copy.
        groups: Trainable variables, each group with an optimizer and a rate of its own.
        optimizers: One a group.
        averaged: Variables whose averages are the result: those that train, and the batch statistics.
        averages: One for each of `averaged`; none at all where the last values are the result.
        decay: Of the averages, a step.
        clip_norm: Largest norm of all gradients together, or None.
        loss: Of the network's outputs and labels.
        augmentation: How views are made.
        images: `(n, h, w, 3)` uint8.
    """

    network: keras.Model
    groups: tuple[list[Any], ...]
    optimizers: tuple[keras.optimizers.Optimizer, ...]
    averaged: list[Any]
    averages: list[Any]
    decay: float
    clip_norm: float | None
    loss: Callable[[Any, Any], Any]
    augmentation: Augmentation
    images: NDArray[np.uint8]

    def views(self, images: Any, size: int, drawn: Sequence[Any]) -> Any:
        """Make the network's inputs of uint8 images: `(b, size, size, 3)` float32 in [-1, 1]."""
        return self.augmentation.apply(images, size, *drawn) / 127.5 - 1.0

    def decay_at(self, steps: Any) -> Any:
        """Return the decay of the averages after so many steps."""
        steps = ops.cast(steps, "float32")
        return ops.minimum(self.decay, (1.0 + steps) / (_FIRST_STEPS + steps))

    def split(self, values: Sequence[Any]) -> list[list[Any]]:
        """Share values of all trainable variables, group after group, among the groups."""
        cut = len(self.groups[0])
        return [list(values[:cut]), list(values[cut:])]


class Steps(Protocol):
    """Takes the steps of an epoch."""

    def start(self) -> None:
        """Take the values of the learner's variables."""
        ...

    def take(self, size: int, batch: Batch, rates: Sequence[float]) -> Any:
        """Take a step on views of so many pixels, with a rate for each group; returns the loss."""
        ...

    def finish(self) -> None:
        """Leave the values in the learner's variables."""
        ...


def steps_of(learner: Learner) -> Steps:
    """Return the steps of the backend that Keras was started with (KERAS_BACKEND)."""
    if keras.backend.backend() == "jax":
        from model.jax_steps import JaxSteps

        return JaxSteps(learner)
    from model.tensorflow_steps import TensorFlowSteps

    return TensorFlowSteps(learner)
