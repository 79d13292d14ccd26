"""The points that an evaluation keeps of its curves say what its figures say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model.crossfit import Verdicts
from model.curves import MOST_POINTS, bin_confidences, trace_curves, trace_roc
from model.labels import CLASSES
from model.metadata import PatientMetadata
from model.metrics import expected_calibration_error, roc_area

MEL, NV, DF = (CLASSES.index(name) for name in ("mel", "nv", "df"))


def verdicts(scores: list[float], labels: list[int], *, before: list[float] | None = None) -> Verdicts:
    """Verdicts with these posteriors of melanoma and the rest on nv, at a flat prior."""
    nobody, count = np.zeros(len(scores), bool), len(scores)
    both = [np.zeros((count, 7)), np.zeros((count, 7))]
    for made, melanoma in zip(both, (before or scores, scores), strict=True):
        made[:, MEL] = melanoma
        made[:, NV] = 1 - made[:, MEL]
    return Verdicts(
        uncalibrated=both[0],
        posteriors=both[1],
        prior=np.full(7, 1 / 7),
        unfamiliar=nobody,
        unsure=nobody,
        threshold=0.3,
        labels=np.array(labels),
        lesion_ids=[str(number) for number in range(count)],
        patients=[PatientMetadata()] * count,
        dx_types=["histo"] * count,
    )


@pytest.mark.parametrize("step", [0.0, 0.05])
def test_a_curve_of_thousands_of_images_keeps_its_area_in_a_hundred_points(step: float) -> None:
    # Given 6 000 scores, all different or in large ties
    generator = np.random.default_rng(0)
    positive = generator.random(6000) < 0.2
    scores = generator.normal(1.2 * positive, 1)
    scores = np.round(scores / step) * step if step else scores

    points = np.array(trace_roc(scores, positive))

    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    assert 20 < len(points) <= MOST_POINTS
    assert (np.diff(points, axis=0) >= 0).all()
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(roc_area(scores, positive), abs=0.002)


def test_a_class_that_is_absent_has_no_curve_and_the_operating_point_lies_on_the_malignant_one() -> None:
    # Given four of six images on the right side of the threshold
    curves = trace_curves(verdicts([0.9, 0.4, 0.35, 0.32, 0.25, 0.1], [MEL, MEL, NV, NV, MEL, NV]))

    assert set(curves.roc) == {"mel", "nv", "malignant"}
    assert curves.flagged == (0.6667, 0.6667)
    assert curves.flagged in curves.roc["malignant"]


def test_without_a_malignant_image_there_is_no_point_on_a_curve_that_is_not_there() -> None:
    curves = trace_curves(verdicts([0.9, 0.1], [NV, DF]))

    assert "malignant" not in curves.roc
    assert curves.flagged is None


def test_bins_hold_every_image_and_add_up_to_the_calibration_error() -> None:
    generator = np.random.default_rng(1)
    confidences = generator.random(500)
    correct = generator.random(500) < confidences**2

    bins = bin_confidences(confidences, correct)

    assert sum(one.images for one in bins) == 500
    error = sum(one.images * abs(one.share - one.confidence) for one in bins) / 500
    assert error == pytest.approx(expected_calibration_error(confidences, correct), abs=1e-4)
    assert all(one.low <= one.share <= one.high for one in bins)


def test_an_empty_bin_is_left_out_and_before_is_told_from_after() -> None:
    curves = trace_curves(verdicts([0.5] * 60, [MEL, NV] * 30, before=[0.9] * 60))

    (before,), (after,) = curves.reliability_before["malignant"], curves.reliability["malignant"]
    assert (before.images, before.confidence, before.share) == (60, 0.9, 0.5)
    assert (after.images, after.confidence, after.share) == (60, 0.5, 0.5)


def test_what_is_kept_stays_small_however_many_images_there_are() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 7, 20_000)
    made = verdicts(generator.random(20_000).tolist(), labels.tolist())

    assert len(json.dumps(trace_curves(made).model_dump(mode="json"))) < 20_000
