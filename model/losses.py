"""Training losses for rare classes, and how a posterior is had from each."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from model.labels import CLASSES


def class_prior(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Class frequencies of training labels, `(7,)`, each at least one image's share."""
    counts = np.maximum(np.bincount(labels, minlength=len(CLASSES)), 1)
    return counts / counts.sum()


def balanced_weights(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Class weights W_c = N / (C * N_c) of training labels, `(7,)`: the paper's weighted loss."""
    return 1.0 / (len(CLASSES) * class_prior(labels))


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    shift: NDArray[np.float64],
    weights: NDArray[np.float64],
    spread: NDArray[np.float64] | None = None,
) -> Any:
    """Mean over a batch of weights[label] * cross-entropy(logits + shift, label).

    With shift = log prior and weights 1 it is the balanced softmax (Ren et al. 2020, arXiv 2007.10740, equation 4);
    with shift 0 and W_c the paper's weighted loss.

    Args:
        logits: `(n, 7)` float32.
        labels: `(n,)` int64.
        shift: `(7,)` added to the logits.
        weights: `(7,)` class weights.
        spread: `(7,)` what each class gets of the target whatever the label; the label gets what is left of 1. None
            smooths no label.
    """
    targets = ops.one_hot(labels, len(CLASSES))
    if spread is not None:
        targets = targets * (1.0 - spread.sum()) + ops.convert_to_tensor(spread, "float32")
    losses = -ops.sum(targets * ops.log_softmax(logits + ops.convert_to_tensor(shift, "float32")), axis=-1)
    return ops.mean(losses * ops.take(ops.convert_to_tensor(weights, "float32"), labels))


def prior_free_offset(
    prior: NDArray[np.float64], shift: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What to add to trained logits, `(7,)`, so that softmax(logits + log prior) is the posterior.

    A loss weighted by w teaches softmax(logits + shift) proportional to w_c p_c, hence
    log p_c = logits_c + shift_c - log w_c + const. For the balanced softmax and for W_c the offset is a constant.
    """
    return shift - np.log(weights) - np.log(prior)
