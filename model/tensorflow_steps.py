"""Training steps on TensorFlow: a graph for each size of image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from model.device import prepare_device
from model.steps import Batch, Learner


class TensorFlowSteps:
    """Steps that change the learner's variables in place.

    Args:
        learner: What learns.
    """

    def __init__(self, learner: Learner) -> None:
        prepare_device()
        self._learner = learner
        # The size is a Python number: one graph for each.
        self._step = tf.function(self._take)

    def start(self) -> None:
        """Nothing to take."""

    def take(self, size: int, batch: Batch, rates: Sequence[float]) -> Any:
        """Take a step; see `model.steps.Steps`."""
        learner = self._learner
        for optimizer, rate in zip(learner.optimizers, rates, strict=True):
            optimizer.learning_rate.assign(rate)
        parts = (learner.images[batch.rows], batch.metadata, batch.labels, *batch.drawn)
        return self._step(size, *(tf.constant(part) for part in parts))

    def finish(self) -> None:
        """Nothing to leave."""

    def _take(self, size: int, images: Any, metadata: Any, labels: Any, *drawn: Any) -> Any:
        learner = self._learner
        views = learner.views(images, size, drawn)
        with tf.GradientTape() as tape:
            loss = learner.loss(learner.network([views, metadata], training=True), labels)
        gradients = tape.gradient(loss, [v.value for group in learner.groups for v in group])
        if learner.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, learner.clip_norm)
        for optimizer, some, group in zip(learner.optimizers, learner.split(gradients), learner.groups, strict=True):
            optimizer.apply(some, group)
        decay = learner.decay_at(learner.optimizers[0].iterations.value)
        for average, variable in zip(learner.averages, learner.averaged, strict=False):
            average.assign(decay * average + (1.0 - decay) * variable.value)
        return loss
