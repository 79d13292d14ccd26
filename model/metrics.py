"""Figures of merit of a classifier, each by its textbook definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.labels import CLASSES, MALIGNANT_INDEX


def confusion_matrix(labels: NDArray[np.int64], diagnoses: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count `(true, diagnosed)` pairs into a `(7, 7)` matrix."""
    size = len(CLASSES)
    return np.bincount(labels * size + diagnoses, minlength=size * size).reshape(size, size)


def recall_by_class(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sensitivity of each class; NaN for a class with no image."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.diag(matrix) / matrix.sum(axis=1)


def balanced_accuracy(matrix: NDArray[np.int64]) -> float:
    """ISIC's balanced accuracy: the mean recall over the classes present."""
    return float(np.nanmean(recall_by_class(matrix)))


def expected_calibration_error(
    confidences: NDArray[np.float64], correct: NDArray[np.bool_], *, bins: int = 15
) -> float:
    """Expected calibration error over equal-width bins (Guo et al. 2017, equation 3).

    Args:
        confidences: `(n,)` in [0, 1].
        correct: `(n,)` whether the diagnosis was right.
        bins: Number of bins.
    """
    index = np.minimum((confidences * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    gaps = np.abs(np.bincount(index, confidences, bins) - np.bincount(index, correct, bins))
    return float(gaps[counts > 0].sum() / len(confidences))


def summarise(
    probabilities: NDArray[np.float64], prior: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, float | dict[str, float]]:
    """Judge posteriors against the truth.

    Args:
        probabilities: `(n, 7)` posteriors at `prior`.
        prior: `(7,)` class frequencies the posteriors assume.
        labels: `(n,)` class indices.

    Returns:
        Balanced accuracy, accuracy, macro AUC and malignant AUC, calibration error, and recall by class, where the
        diagnosis is argmax p_c / prior_c; the accuracy and calibration error are of the posterior's own argmax.
    """
    from sklearn.metrics import roc_auc_score

    matrix = confusion_matrix(labels, np.argmax(probabilities / prior, axis=1))
    recalls = recall_by_class(matrix)
    top = np.argmax(probabilities, axis=1)
    aucs = [
        roc_auc_score(labels == c, probabilities[:, c]) for c in range(len(CLASSES)) if 0 < np.mean(labels == c) < 1
    ]
    malignant = probabilities[:, MALIGNANT_INDEX].sum(axis=1)
    return {
        "images": float(len(labels)),
        "balanced_accuracy": balanced_accuracy(matrix),
        "accuracy": float(np.mean(np.argmax(probabilities / prior, axis=1) == labels)),
        "accuracy_of_posterior": float(np.mean(top == labels)),
        "macro_auc": float(np.mean(aucs)),
        "malignant_auc": float(roc_auc_score(np.isin(labels, MALIGNANT_INDEX), malignant)),
        "calibration_error": expected_calibration_error(probabilities.max(axis=1), top == labels),
        "recall": {name: float(value) for name, value in zip(CLASSES, recalls, strict=True)},
    }
