"""Intervals by lesion: exact against a plain loop, and wider where images repeat each other."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from model.bootstrap import LesionBootstrap, take_interval


@pytest.fixture(scope="module")
def lesions() -> list[str]:
    return [f"L{number // 3}" for number in range(300)]


def test_each_draw_holds_as_many_lesions_as_there_are(lesions: list[str]) -> None:
    bootstrap = LesionBootstrap(lesions, draws=50)

    assert bootstrap.weights.shape == (50, 100)
    assert (bootstrap.weights.sum(axis=1) == 100).all()
    assert (bootstrap.weights != LesionBootstrap(lesions, draws=50, seed=1).weights).any()


def test_sums_and_areas_are_those_of_a_plain_loop_with_ties(lesions: list[str]) -> None:
    # Given scores with many ties, and a subset that counts
    generator = np.random.default_rng(0)
    positive = generator.random(300) < 0.3
    scores = np.round(generator.normal(positive, 1), 1)
    among = generator.random(300) < 0.7
    bootstrap = LesionBootstrap(lesions, draws=20)

    # If every draw is taken at once
    areas = bootstrap.area_under_curve(scores, positive)
    part = bootstrap.area_under_curve(scores, positive, among)
    sums = bootstrap.sum(np.stack([scores, positive], axis=1))

    # Then each is what a plain weighted computation gives
    for draw, weights in enumerate(bootstrap.weights[:, bootstrap.lesion]):
        assert areas[draw] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))
        assert part[draw] == pytest.approx(roc_auc_score(positive[among], scores[among], sample_weight=weights[among]))
        assert sums[draw] == pytest.approx([weights @ scores, weights @ positive])


def test_images_that_repeat_each_other_add_no_certainty() -> None:
    # Given a hundred lesions with one image, and the same with nine copies of it
    hits = np.random.default_rng(1).random(100) < 0.7
    names = [f"L{number}" for number in range(100)]

    def width(copies: int) -> float:
        bootstrap = LesionBootstrap(np.repeat(names, copies).tolist())
        repeated = np.repeat(hits, copies)
        drawn = bootstrap.sum(np.stack([repeated, np.ones_like(repeated)], axis=1))
        interval = take_interval(repeated.mean(), drawn[:, 0] / drawn[:, 1])
        assert interval.low is not None
        assert interval.high is not None
        return interval.high - interval.low

    # Then the interval is the same, and the binomial one
    assert width(9) == pytest.approx(width(1))
    assert width(1) == pytest.approx(2 * 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 100), rel=0.1)


def test_a_figure_that_is_undefined_has_no_interval() -> None:
    nothing: NDArray[np.float64] = np.full(10, np.nan)

    assert take_interval(np.nan, nothing).value is None
    assert f"{take_interval(np.nan, nothing):.3f}" == "undefined"
    assert f"{take_interval(0.5, np.array([0.25, np.nan, 0.25])):.2f}" == "0.50 (0.25 to 0.25)"
