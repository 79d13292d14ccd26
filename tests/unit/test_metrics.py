"""Figures of merit against figures known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from model.labels import CLASSES
from model.metrics import (
    Outcomes,
    balanced_accuracy,
    confusion_matrix,
    expected_calibration_error,
    mean_over_classes,
    recall_by_class,
    summarise,
)

#: TP, FP, FN, TN by class of the paper's MobileNetV3Large, as its authors' notebooks print them.
PUBLISHED = {
    "akiec": (24, 6, 9, 957),
    "bcc": (42, 13, 9, 932),
    "bkl": (89, 30, 20, 857),
    "df": (11, 3, 1, 981),
    "mel": (66, 40, 45, 845),
    "nv": (613, 45, 53, 285),
    "vasc": (13, 1, 1, 981),
}


def test_the_published_counts_give_the_published_figures() -> None:
    hits, alarms, misses, rest = np.array(list(PUBLISHED.values()), np.float64).T

    outcomes = Outcomes(true_positives=hits, false_positives=alarms, false_negatives=misses, true_negatives=rest)

    assert tuple(PUBLISHED) == CLASSES
    assert outcomes.accuracy() == pytest.approx(0.861446, abs=5e-7)
    assert mean_over_classes(outcomes.precision()) == pytest.approx(0.797153, abs=5e-7)
    assert outcomes.balanced_accuracy() == pytest.approx(0.818224, abs=5e-7)
    assert mean_over_classes(outcomes.f1()) == pytest.approx(0.806294, abs=5e-7)
    assert mean_over_classes(outcomes.specificity()) == pytest.approx(0.965795, abs=5e-7)
    assert outcomes.paper_balanced_accuracy() == pytest.approx(0.892009, abs=5e-7)
    assert outcomes.f1()[CLASSES.index("mel")] == pytest.approx(0.608295, abs=5e-7)


def test_outcomes_are_counted_from_a_matrix_and_from_a_stack_of_them() -> None:
    # Given any matrix
    matrix = np.random.default_rng(0).integers(0, 50, (7, 7))

    # If it is counted alone, and as one of two
    alone, stacked = Outcomes.of(matrix), Outcomes.of(np.stack([matrix.T, matrix]))

    # Then each class has what the matrix says of it
    for index in range(7):
        others = [other for other in range(7) if other != index]
        assert alone.true_positives[index] == matrix[index, index]
        assert alone.false_positives[index] == matrix[others, index].sum()
        assert alone.false_negatives[index] == matrix[index, others].sum()
        assert alone.true_negatives[index] == matrix[np.ix_(others, others)].sum()
    assert stacked.f1()[1] == pytest.approx(alone.f1())
    assert stacked.accuracy() == pytest.approx(np.trace(matrix) / matrix.sum())
    assert stacked.balanced_accuracy()[1] == pytest.approx(alone.balanced_accuracy())


def test_a_class_without_images_does_not_count() -> None:
    matrix = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))

    assert balanced_accuracy(matrix) == pytest.approx(0.75)
    assert np.isnan(recall_by_class(matrix)[2:]).all()


def test_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    confidences = np.full(1000, 0.8)
    correct = np.arange(1000) < 600

    assert expected_calibration_error(confidences, correct) == pytest.approx(0.2)


def test_the_diagnosis_weighs_the_posterior_by_the_prior() -> None:
    # Given a posterior that favours the common class only by its frequency
    prior = np.array([0.02, 0.02, 0.02, 0.02, 0.1, 0.8, 0.02])
    labels = np.arange(7)
    probabilities = np.tile(prior, (7, 1))
    probabilities[np.arange(7), labels] *= 3
    probabilities /= probabilities.sum(axis=1, keepdims=True)

    # Then the posterior's own argmax is always nv, and the diagnosis is right every time
    summary = summarise(probabilities, prior, labels)
    assert summary["accuracy_of_posterior"] == pytest.approx(1 / len(CLASSES))
    assert summary["balanced_accuracy"] == 1.0
