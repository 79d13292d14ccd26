"""Figures of merit with their bootstrap draws, so that two models can be compared pair by pair."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.bootstrap import Interval, LesionBootstrap, take_interval
from model.evaluation import draw_class_areas, draw_confusion
from model.labels import CLASSES, MALIGNANT_INDEX
from model.metrics import Outcomes, mean_over_classes, roc_area

#: A figure on the data itself, and on each draw, `(draws,)`; NaN where it is undefined.
Measured: TypeAlias = tuple[float, NDArray[np.float64]]


def measure(
    bootstrap: LesionBootstrap,
    labels: NDArray[np.int64],
    diagnoses: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> dict[str, Measured]:
    """Measure what a model said of n labelled images.

    Args:
        bootstrap: Draws of the images' lesions.
        labels: `(n,)` class indices.
        diagnoses: `(n,)` class indices.
        scores: `(n, 7)` probabilities.

    Returns:
        By name: accuracy; the means over the classes of recall (ISIC's balanced accuracy), of (sensitivity +
        specificity) / 2 (the paper's), precision, F1, specificity and ROC AUC; the means weighted by each class's
        images ("weighted_…"); the malignant score's ROC AUC; and F1 and recall of each class ("f1_mel").
    """
    outcomes = tuple(Outcomes.of(matrix) for matrix in draw_confusion(bootstrap, labels, diagnoses))
    areas, area_draws = draw_class_areas(bootstrap, labels, scores)
    found, draws = (_figures(*pair) for pair in zip(outcomes, (areas, area_draws), strict=True))
    malignant, score = np.isin(labels, MALIGNANT_INDEX), scores[:, MALIGNANT_INDEX].sum(axis=1)
    return {name: (float(found[name]), draws[name]) for name in found} | {
        "malignant_auc": (roc_area(score, malignant), bootstrap.area_under_curve(score, malignant))
    }


def _figures(outcomes: Outcomes, areas: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    recall, precision, f1 = outcomes.sensitivity(), outcomes.precision(), outcomes.f1()
    images = outcomes.true_positives + outcomes.false_negatives
    by_class = {
        f"{name}_{label}": figure[..., index]
        for name, figure in (("f1", f1), ("recall", recall))
        for index, label in enumerate(CLASSES)
    }
    return by_class | {
        "accuracy": outcomes.accuracy(),
        "balanced_accuracy": outcomes.balanced_accuracy(),
        "paper_balanced_accuracy": outcomes.paper_balanced_accuracy(),
        "precision": mean_over_classes(precision),
        "f1": mean_over_classes(f1),
        "specificity": mean_over_classes(outcomes.specificity()),
        "macro_auc": mean_over_classes(areas),
        "weighted_precision": _weigh(precision, images),
        "weighted_f1": _weigh(f1, images),
        "weighted_sensitivity": _weigh(recall, images),
    }


def _weigh(figures: NDArray[np.float64], images: NDArray[np.floating]) -> NDArray[np.float64]:
    # A class that is never diagnosed has no precision: it counts as 0, as scikit-learn counts it.
    return (np.nan_to_num(figures) * images).sum(axis=-1) / images.sum(axis=-1)


def take_intervals(measured: dict[str, Measured]) -> dict[str, Interval]:
    """Give each figure its 95 % interval."""
    return {name: take_interval(*one) for name, one in measured.items()}


def take_difference(one: Measured, other: Measured) -> Interval:
    """Give the difference of a figure of two models its 95 % interval, both measured on the same draws."""
    return take_interval(one[0] - other[0], one[1] - other[1])
