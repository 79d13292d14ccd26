"""Bins of held-out images, and how far others are from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.drift import DriftRow
from model.metadata import SITES, PatientMetadata
from model.reference import make_reference
from producer.drift import drift_as_json, warn_of_drift
from worker.drift import stability_index


def test_the_index_is_the_sum_over_bins() -> None:
    # Worked out by hand: shares .5/.5 against .9/.1, with a half image added to every bin of 1 000
    p, q = 900.5 / 1001, 500.5 / 1001
    by_hand = (p - q) * math.log(p / q) + (q - p) * math.log((1 - p) / (1 - q))
    assert stability_index([500, 500], [900, 100]) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.876, abs=0.001)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=12), st.data())
def test_the_index_is_finite_never_negative_and_the_same_from_both_sides(bins: list[int], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.integers(0, 10_000), min_size=len(bins), max_size=len(bins)))
    index = stability_index(bins, others)
    assert math.isfinite(index)
    assert index >= 0
    assert index == pytest.approx(stability_index(others, bins))
    assert stability_index(bins, bins) == 0


def test_alike_samples_have_about_the_index_of_chance() -> None:
    # Two samples of one distribution, as large as a small batch and a fold
    generator = np.random.default_rng(0)
    n, m = 500, 2000
    expected = 9 * (1 / n + 1 / m)
    found = [
        stability_index(generator.multinomial(m, [0.1] * 10).tolist(), generator.multinomial(n, [0.1] * 10).tolist())
        for _ in range(400)
    ]
    assert np.mean(found) == pytest.approx(expected, rel=0.15)
    # Far from what is called a shift
    assert np.quantile(found, 0.99) < 0.1


def test_a_reference_holds_every_image_once_in_each_feature() -> None:
    # Given patients some of whom nobody knows, and sites in two vocabularies
    patients = [
        PatientMetadata(age=20.0, localization="back"),
        PatientMetadata(age=19.9, localization="posterior torso"),
        PatientMetadata(age=85.0, localization="Mars"),
        PatientMetadata(),
    ] * 25
    scores = np.arange(100) / 100

    # If they are counted
    reference = make_reference(patients, scores, scores + 1)

    # Then bins hold their lower bound, the unknown are apart, and numbers are in ten bins of ten
    assert reference.images == 100
    assert reference.counts["age"] == (25, 25, 0, 0, 25, 25)
    sites = dict(zip(SITES, reference.counts["localization"], strict=True))
    assert (sites["posterior torso"], sites["unknown"]) == (50, 50)
    assert reference.counts["malignant_score"] == (10,) * 10
    assert len(reference.bounds["distance"]) == 9


def test_equal_values_share_a_bin() -> None:
    reference = make_reference([PatientMetadata()] * 50, np.zeros(50), np.ones(50))
    assert reference.bounds["malignant_score"] == (0.0,)
    assert reference.counts["malignant_score"] == (0, 50)


@pytest.mark.parametrize(
    ("images", "index", "warned", "verdict"),
    [
        (500, 0.3, True, "major"),
        (500, 0.25, True, "major"),
        (500, 0.1, True, "moderate"),
        (500, 0.09, False, "none"),
        (499, 3.0, False, "too few images"),
    ],
)
def test_what_is_said_of_an_index(images: int, index: float, verdict: str, *, warned: bool) -> None:
    row = DriftRow(
        batch_id=7,
        images=images,
        counts={},
        indices={"age": index},
        compared_with=None,
        accepted=False,
        measured_at=0.0,
    )
    warning = warn_of_drift(row)
    assert (warning is not None) == warned
    assert warning is None or f"age (PSI {index:.2f})" in warning
    assert drift_as_json(row)["verdicts"] == {"age": verdict}
