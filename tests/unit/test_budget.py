"""The reading budget: probabilities at another prevalence, and an interval for how many melanomas are read."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.budget import count_interval, cover_days, shift_prior

_inside = st.floats(0.001, 0.999)


def test_a_probability_at_another_prevalence_is_what_bayes_gives() -> None:
    # Given an image that is nine times as likely under melanoma as under the rest, at a prior of a tenth
    assert shift_prior(0.5, 0.1, 0.1) == pytest.approx(0.5)

    # Then at a prevalence of one in a hundred its odds are 9 * 1/99
    assert shift_prior(0.5, 0.1, 0.01) == pytest.approx((9 / 99) / (1 + 9 / 99))


@given(_inside, _inside, _inside)
def test_shifting_there_and_back_changes_nothing_and_what_is_certain_stays_so(
    p: float, one: float, other: float
) -> None:
    assert shift_prior(shift_prior(p, one, other), other, one) == pytest.approx(p)
    assert shift_prior(0.0, one, other) == 0
    assert shift_prior(1.0, one, other) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_interval_is_that_of_all_ways_the_events_can_fall(probabilities: list[float]) -> None:
    # Given the distribution of the count by brute force
    shares = [0.0] * (len(probabilities) + 1)
    for events in itertools.product((0, 1), repeat=len(probabilities)):
        weights = (p if event else 1 - p for p, event in zip(probabilities, events, strict=True))
        shares[sum(events)] += math.prod(weights)
    low, high = count_interval(probabilities)

    # Then no more than a fortieth lies on either side
    assert sum(shares[:low]) <= 0.025 + 1e-9
    assert sum(shares[high + 1 :]) <= 0.025 + 1e-9
    # And no narrower interval would do
    assert sum(shares[: low + 1]) >= 0.025 - 1e-9
    assert sum(shares[high:]) >= 0.025 - 1e-9


def test_above_a_thousand_lesions_the_normal_interval_takes_over_without_a_jump() -> None:
    exact, normal = count_interval([0.1] * 1000), count_interval([0.1] * 1001)

    assert exact == (82, 119)
    assert all(abs(a - b) <= 1 for a, b in zip(exact, normal, strict=True))


def test_days_end_with_the_list_and_without_a_prevalence_nothing_is_expected() -> None:
    scores = [0.9, 0.8, 0.5, 0.4, 0.1]

    days = cover_days(scores, None, 2)

    assert [(one.day, one.lesions, one.score, one.expected) for one in days] == [
        (1, 2, 0.8, None),
        (2, 4, 0.4, None),
        (3, 5, 0.1, None),
    ]
    assert [one.lesions for one in cover_days(scores, None, 5)] == [5]
    assert cover_days([], None, 5) == []
    assert len(cover_days([0.5] * 1000, None, 10)) == 10


def test_days_add_up_what_is_expected() -> None:
    days = cover_days([0.9, 0.8, 0.5], [0.5, 0.25, 0.25], 2)

    assert [one.expected for one in days] == [0.75, 1.0]
    assert (days[0].low, days[0].high) == (0, 2)
