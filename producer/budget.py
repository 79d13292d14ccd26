"""Reading budget: how far down the ranking a day's reading gets, and how many melanomas that is expected to cover."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Days that are written out.
_SHOWN_DAYS: Final = 10

#: Above so many lesions the interval is that of a normal distribution: the exact one takes a second and differs little.
_EXACT_LESIONS: Final = 1000

#: Two-sided level of the interval, and the normal distribution's quantile for it.
_OUTSIDE: Final = 0.05
_QUANTILE: Final = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """What reading down to one rank covers."""

    day: int
    #: Lesions read by then.
    lesions: int
    #: Score of the last of them.
    score: float
    #: Expected melanomas among them, and bounds that chance keeps their number in, 19 times in 20; None without a
    #: prevalence.
    expected: float | None
    low: int | None
    high: int | None


def shift_prior(probability: float, prior: float, prevalence: float) -> float:
    """Re-weight a calibrated probability of melanoma from the prior that it holds at to another prevalence.

    Saerens, Latinne and Decaestecker 2002, Adjusting the outputs of a classifier to new a priori probabilities,
    equation 2.4, for melanoma against the rest: p' is in the ratio p P/π to (1 - p)(1 - P)/(1 - π). It holds if
    melanomas, and the rest among themselves, look as they did in training and only their shares differ.

    Args:
        probability: p, which holds at the prior.
        prior: π, the share of melanoma that the model's probabilities hold at.
        prevalence: P, the share of melanoma in what is screened.

    Returns:
        The probability at that prevalence.
    """
    melanoma = probability * prevalence / prior
    rest = (1 - probability) * (1 - prevalence) / (1 - prior)
    return melanoma / (melanoma + rest)


def count_interval(probabilities: Sequence[float]) -> tuple[int, int]:
    """Bound how many of independent events happen, 19 times in 20: quantiles of the Poisson binomial distribution.

    Exact by adding one event after another (Chen and Liu 1997, Statistica Sinica 7, 875-892) up to a thousand, and
    normal with a continuity correction above. Only chance is in it: not what the probabilities themselves are wrong by.

    Args:
        probabilities: Of each event.

    Returns:
        The 2.5 % and the 97.5 % quantile.
    """
    if len(probabilities) > _EXACT_LESIONS:
        mean = sum(probabilities)
        reach = _QUANTILE * math.sqrt(sum(p * (1 - p) for p in probabilities)) + 0.5
        return max(0, math.ceil(mean - reach)), min(len(probabilities), math.floor(mean + reach))
    shares = [1.0]
    for p in probabilities:
        shares = [a * (1 - p) + b * p for a, b in zip([*shares, 0.0], [0.0, *shares], strict=True)]
    return _quantile(shares, _OUTSIDE / 2), _quantile(shares, 1 - _OUTSIDE / 2)


def _quantile(shares: Sequence[float], level: float) -> int:
    below = 0.0
    for count, share in enumerate(shares):
        below += share
        if below >= level:
            return count
    return len(shares) - 1


def cover_days(scores: Sequence[float], melanoma: Sequence[float] | None, budget: int) -> list[Covered]:
    """Say what the first days of reading cover.

    Args:
        scores: Malignant score of each lesion, the highest first.
        melanoma: Probability of melanoma of each lesion at the stated prevalence; None where none is stated.
        budget: Lesions read a day.

    Returns:
        A row a day, up to ten days or the end of the list.
    """
    days = []
    for day in range(1, _SHOWN_DAYS + 1):
        read = min(day * budget, len(scores))
        if read <= (day - 1) * budget:
            break
        low, high = (None, None) if melanoma is None else count_interval(melanoma[:read])
        expected = None if melanoma is None else sum(melanoma[:read])
        days.append(Covered(day=day, lesions=read, score=scores[read - 1], expected=expected, low=low, high=high))
    return days
