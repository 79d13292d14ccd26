"""Temperature, operating point and referral on numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from model.calibration import (
    MAX_REFERRED,
    MAX_REFERRED_IN_CLASS,
    balanced_confidence,
    fit_calibration,
    fit_operating_point,
    fit_referral,
    posterior,
    wilson_interval,
)

PRIOR = np.array([0.05, 0.05, 0.1, 0.02, 0.1, 0.66, 0.02])


def test_a_network_without_opinion_yields_the_prior() -> None:
    assert posterior(np.zeros((3, 7)), PRIOR) == pytest.approx(np.tile(PRIOR, (3, 1)))


def test_the_temperature_and_offsets_that_spoilt_the_logits_are_found() -> None:
    # Given labels drawn from a posterior, and logits twice as sure as that and partial to some classes
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20_000, 7))
    truth = posterior(logits, PRIOR)
    labels = (truth.cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1)
    partial = np.array([0.5, -0.5, 0.0, 0.3, -0.8, 0.5, 0.0])

    # Then the fit halves them and takes the favours back
    spoilt = 2 * (logits + partial)
    fitted = fit_calibration(spoilt, PRIOR, labels)
    assert fitted.temperature == pytest.approx(2.0, abs=0.08)
    assert fitted.offsets == pytest.approx(-partial, abs=0.12)
    assert fitted.apply(spoilt, PRIOR) == pytest.approx(truth, abs=0.03)


def test_a_class_that_does_not_occur_keeps_nearly_its_place() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (2000, 7))
    labels = generator.choice([0, 5], 2000)

    fitted = fit_calibration(logits, PRIOR, labels)

    assert np.isfinite(fitted.offsets).all()
    assert fitted.offsets.sum() == pytest.approx(0, abs=1e-9)


def test_the_operating_point_flags_95_percent_of_malignant_lesions_and_of_melanomas() -> None:
    generator = np.random.default_rng(1)
    labels = generator.choice(7, 4000, p=PRIOR)
    logits = generator.normal(0, 1, (4000, 7))
    logits[np.arange(4000), labels] += 2
    lesions = [f"L{index}" for index in range(4000)]

    point = fit_operating_point(posterior(logits, PRIOR), labels, lesions)

    assert point.sensitivity >= 0.95
    assert point.melanoma_sensitivity >= 0.95
    assert min(point.sensitivity, point.melanoma_sensitivity) < 0.96
    assert point.sensitivity_interval[0] < point.sensitivity < point.sensitivity_interval[1]
    assert point.prevalence == pytest.approx(0.2, abs=0.02)


def test_a_lesion_is_flagged_when_any_of_its_images_is() -> None:
    # Given one melanoma with a faint and a clear image, and one with a clear image
    probabilities = np.zeros((4, 7))
    probabilities[:, 4] = [0.1, 0.9, 0.8, 0.2]
    probabilities[:, 5] = 1 - probabilities[:, 4]

    point = fit_operating_point(probabilities, np.array([4, 4, 4, 5]), ["a", "a", "b", "c"])

    assert point.threshold == pytest.approx(0.8)
    assert point.lesions == 3


def test_wilson_interval_of_a_textbook_case() -> None:
    assert wilson_interval(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)


def test_referral_stays_under_its_ceilings_even_when_one_class_lies_apart() -> None:
    # Given distances and confidences where one rare class is always the farthest
    generator = np.random.default_rng(2)
    labels = generator.choice(7, 5000, p=PRIOR)
    distances = generator.gamma(9, 1, 5000) + 40 * (labels == 3)
    confidences = generator.uniform(0.3, 1, 5000)

    thresholds = fit_referral(distances, confidences, labels)

    assert thresholds.referred <= MAX_REFERRED
    assert max(thresholds.referred_in_class.values()) <= MAX_REFERRED_IN_CLASS


def test_balanced_confidence_does_not_depend_on_how_common_the_class_is() -> None:
    logits = 2 * np.eye(7)

    confidences = balanced_confidence(posterior(logits, PRIOR), PRIOR)

    assert confidences == pytest.approx(np.full(7, confidences[0]))
