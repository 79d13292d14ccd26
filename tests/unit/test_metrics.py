"""Figures of merit against figures known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from model.labels import CLASSES
from model.metrics import balanced_accuracy, confusion_matrix, expected_calibration_error, recall_by_class, summarise


def test_macro_recall_of_the_published_confusion_counts() -> None:
    # Given the paper's optimised model: true positives and false negatives by class
    hits = np.array([24, 42, 89, 11, 66, 613, 13])
    misses = np.array([9, 9, 20, 1, 45, 53, 1])
    matrix = np.diag(hits)
    matrix[np.arange(7), (np.arange(7) + 1) % 7] = misses

    # Then the mean recall is the published one
    assert balanced_accuracy(matrix) == pytest.approx(0.818224, abs=5e-6)


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
