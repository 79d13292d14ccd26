"""Figures of two models are measured on the same draws of lesions, so that their difference has an interval."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

from model.bootstrap import LesionBootstrap
from model.labels import CLASSES
from model.measures import measure, take_difference, take_intervals


def say(generator: np.random.Generator, labels: NDArray[np.int64], sharpness: float) -> NDArray[np.float64]:
    """Draw probabilities that are right more or less often."""
    logits = generator.normal(size=(len(labels), 7)) + sharpness * np.eye(7)[labels]
    chances: NDArray[np.float64] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return chances


@pytest.fixture
def lesions() -> list[str]:
    return [f"lesion-{number // 2}" for number in range(400)]


@pytest.fixture
def labels() -> NDArray[np.int64]:
    return np.arange(400) // 2 % 7


def test_figures_are_those_of_scikit_learn(lesions: list[str], labels: NDArray[np.int64]) -> None:
    scores = say(np.random.default_rng(0), labels, 1.0)
    diagnoses = np.argmax(scores, axis=1)

    found = measure(LesionBootstrap(lesions, draws=50), labels, diagnoses, scores)

    precision, recall, f1, _ = precision_recall_fscore_support(labels, diagnoses)
    weighted = precision_recall_fscore_support(labels, diagnoses, average="weighted")
    assert [found[f"recall_{name}"][0] for name in CLASSES] == pytest.approx(recall)
    assert [found[f"f1_{name}"][0] for name in CLASSES] == pytest.approx(f1)
    assert found["precision"][0] == pytest.approx(precision.mean())
    names = ("weighted_precision", "weighted_sensitivity", "weighted_f1")
    assert [found[name][0] for name in names] == pytest.approx(weighted[:3])
    assert found["weighted_sensitivity"][0] == pytest.approx(found["accuracy"][0])


def test_a_class_that_is_never_diagnosed_leaves_every_figure_a_number(
    lesions: list[str], labels: NDArray[np.int64]
) -> None:
    scores = np.tile(np.eye(7)[5], (400, 1))

    found = take_intervals(measure(LesionBootstrap(lesions, draws=50), labels, np.argmax(scores, axis=1), scores))

    assert found["balanced_accuracy"].value == pytest.approx(1 / 7)
    assert found["weighted_f1"].value is not None


def test_differences_are_paired(lesions: list[str], labels: NDArray[np.int64]) -> None:
    # Given a good model, a poor one, and the good one again, on the same draws
    generator = np.random.default_rng(0)
    bootstrap = LesionBootstrap(lesions, draws=200, strata=labels)
    good, poor = say(generator, labels, 3.0), say(generator, labels, 1.0)
    first, second, again = (
        measure(bootstrap, labels, np.argmax(scores, axis=1), scores) for scores in (good, poor, good)
    )

    # Then the good one is better beyond the noise, and no better than itself on any draw
    better = take_difference(first["balanced_accuracy"], second["balanced_accuracy"])
    assert better.low is not None
    assert better.low > 0.1
    same = take_difference(first["balanced_accuracy"], again["balanced_accuracy"])
    assert (same.value, same.low, same.high) == (0, 0, 0)
