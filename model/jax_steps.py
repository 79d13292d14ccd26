"""Training steps on JAX: images, weights and what an optimizer keeps stay on the accelerator for a whole epoch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from keras import ops

from model.steps import Batch, Learner


class _State(NamedTuple):
    """Values of the variables: by group, of the rest of the network, of each optimizer, and the averages."""

    trained: list[Any]
    rest: list[Any]
    optimizers: list[Any]
    averages: list[Any]


class JaxSteps:
    """Steps that carry the values of the learner's variables along; `finish` writes them back.

    Args:
        learner: What learns.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        network = learner.network
        self._trained = [variable for group in learner.groups for variable in group]
        places = {id(variable): place for place, variable in enumerate(self._trained)}
        # Where the values of the network's trainable variables, in its own order, stand among ours.
        self._order = [places[id(variable)] for variable in network.trainable_variables]
        self._rest = list(network.non_trainable_variables)
        rest = {id(variable): place for place, variable in enumerate(self._rest)}
        self._statistics = [rest[id(variable)] for variable in learner.averaged[len(self._trained) :]]
        self._rates = [
            next(place for place, variable in enumerate(one.variables) if variable is one._learning_rate)  # noqa: SLF001 - Keras keeps no other way to it
            for one in learner.optimizers
        ]
        self._images = jax.device_put(learner.images)
        self._step = jax.jit(self._take, static_argnums=0, donate_argnums=1)
        self._gather = jax.jit(lambda images, rows: images[rows])
        self._state: _State | None = None

    def start(self) -> None:
        """Take the values of the learner's variables."""
        learner = self._learner
        self._state = _State(
            trained=[_copy(variable) for variable in self._trained],
            rest=[_copy(variable) for variable in self._rest],
            optimizers=[[_copy(variable) for variable in one.variables] for one in learner.optimizers],
            averages=[_copy(variable) for variable in learner.averages],
        )

    def take(self, size: int, batch: Batch, rates: Sequence[float]) -> Any:
        """Take a step; see `model.steps.Steps`."""
        # Apart from the step, whose program then knows nothing of how many images there are, and serves every fold.
        images = self._gather(self._images, batch.rows.astype(np.int32))
        numbers = np.asarray(rates, np.float32)
        parts = (images, batch.metadata, batch.labels.astype(np.int32), *batch.drawn)
        self._state, loss = self._step(size, self._state, numbers, *parts)
        return loss

    def finish(self) -> None:
        """Leave the values in the learner's variables."""
        if self._state is None:
            return
        learner, state = self._learner, self._state
        pairs = [(self._trained, state.trained), (self._rest, state.rest), (learner.averages, state.averages)]
        pairs += [(one.variables, values) for one, values in zip(learner.optimizers, state.optimizers, strict=True)]
        for variables, values in pairs:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self._state = None

    def _take(
        self, size: int, state: _State, rates: Any, images: Any, metadata: Any, labels: Any, *drawn: Any
    ) -> tuple[_State, Any]:
        learner = self._learner
        views = learner.views(images, size, drawn)
        measure = partial(self._loss, rest=state.rest, inputs=[views, metadata], labels=labels)
        (loss, rest), gradients = jax.value_and_grad(measure, has_aux=True)(state.trained)
        gradients = self._clip(gradients)
        trained, optimizers = [], []
        groups = zip(learner.optimizers, learner.split(gradients), learner.split(state.trained), strict=True)
        for number, (optimizer, some, values) in enumerate(groups):
            kept = list(state.optimizers[number])
            kept[self._rates[number]] = rates[number]
            moved, kept = optimizer.stateless_apply(kept, some, values)
            trained += moved
            optimizers.append(kept)
        decay = learner.decay_at(optimizers[0][0])
        averaged = [*trained, *(rest[place] for place in self._statistics)]
        averages = [
            decay * average + (1.0 - decay) * value for average, value in zip(state.averages, averaged, strict=False)
        ]
        return _State(trained, rest, optimizers, averages), loss

    def _loss(self, trained: list[Any], rest: list[Any], inputs: list[Any], labels: Any) -> tuple[Any, list[Any]]:
        ordered = [trained[place] for place in self._order]
        outputs, rest = self._learner.network.stateless_call(ordered, rest, inputs, training=True)
        return self._learner.loss(outputs, labels), rest

    def _clip(self, gradients: list[Any]) -> list[Any]:
        most = self._learner.clip_norm
        if most is None:
            return gradients
        norm = ops.sqrt(sum(ops.sum(ops.square(one)) for one in gradients))
        return [one * (most / ops.maximum(norm, most)) for one in gradients]


def _copy(variable: Any) -> Any:
    # A step gives its arguments up, and the variable's own array is not to go with them.
    return jax.numpy.array(variable.value, copy=True)
