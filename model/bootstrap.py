"""Bootstrap by lesion: intervals that know that the images of one lesion are not independent."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 2000
#: Two-sided 95 %.
TAILS: Final = (0.025, 0.975)
#: Images of one draw at a time are weighed for so many draws: bounds the memory at some 40 MB for 10 000 images.
_DRAWS_AT_ONCE: Final = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure with its 95 % interval.

    Attributes:
        value: The figure on the data itself; None where it is undefined, as the sensitivity of an absent class is.
        low: 2.5 % quantile over the draws (percentile bootstrap, Efron & Tibshirani 1993, chapter 13).
        high: 97.5 % quantile.
    """

    value: float | None
    low: float | None
    high: float | None

    def __format__(self, form: str) -> str:
        """Write "value (low to high)", each number in the given format."""
        if self.value is None or self.low is None or self.high is None:
            return "undefined"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


def take_interval(value: float | np.floating | NDArray[np.floating], draws: NDArray[np.floating]) -> Interval:
    """Make an interval of a figure and its draws; draws where it is undefined (NaN) do not count."""
    defined = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(defined):
        return Interval(value=None, low=None, high=None)
    low, high = np.quantile(defined, TAILS)
    return Interval(value=float(value), low=float(low), high=float(high))


class LesionBootstrap:
    """Draws lesions with replacement; an image counts as often as its lesion was drawn.

    Args:
        lesion_ids: Lesion of each of n images.
        draws: Number of draws.
        seed: The same seed draws the same lesions, so that two models can be compared pair by pair.
        strata: `(n,)` kind of each image; each draw then holds as many lesions of a kind as there are. A lesion's kind
            is that of its first image.
    """

    def __init__(
        self,
        lesion_ids: Sequence[str],
        *,
        draws: int = DRAWS,
        seed: int = 0,
        strata: NDArray[np.int64] | None = None,
    ) -> None:
        _, first, self.lesion = np.unique(np.asarray(lesion_ids), return_index=True, return_inverse=True)
        self.lesions = len(first)
        kinds = np.zeros(self.lesions, np.int64) if strata is None else strata[first]
        generator = np.random.default_rng(seed)
        #: `(draws, lesions)` int16: how often each draw holds each lesion.
        self.weights = np.zeros((draws, self.lesions), np.int16)
        for kind in np.unique(kinds):
            members = np.flatnonzero(kinds == kind)
            drawn = generator.integers(0, len(members), (draws, len(members)))
            drawn += len(members) * np.arange(draws)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=draws * len(members))
            self.weights[:, members] = counts.reshape(draws, len(members))

    def once(self) -> LesionBootstrap:
        """Make a bootstrap whose one draw holds every lesion once: the data itself."""
        whole = copy.copy(self)
        whole.weights = np.ones((1, self.lesions), np.int16)
        return whole

    def sum(self, values: NDArray[np.floating] | NDArray[np.bool_]) -> NDArray[np.float64]:
        """Sum `(n, k)` values of the images in each draw: `(draws, k)`."""
        by_lesion = np.zeros((self.lesions, values.shape[1]))
        np.add.at(by_lesion, self.lesion, values)
        return self.sum_lesions(by_lesion)

    def sum_lesions(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sum `(lesions, k)` values in each draw: `(draws, k)`."""
        return self.weights.astype(np.float32) @ values

    def area_under_curve(
        self,
        scores: NDArray[np.floating],
        positive: NDArray[np.bool_],
        among: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """ROC AUC of each draw, ties counting half: `(draws,)`, NaN where a draw lacks one of the two kinds.

        Args:
            scores: `(n,)`.
            positive: `(n,)` which images are positive.
            among: `(n,)` which images count; None: all.
        """
        rows = np.arange(len(scores)) if among is None else np.flatnonzero(among)
        scores, positive = scores[rows], positive[rows]
        order = np.argsort(scores, kind="stable")
        ordered, hits = scores[order], np.flatnonzero(positive[order])
        lesion = self.lesion[rows[order]]
        # Negatives scored below a positive count whole, those that tie with it half.
        first = np.searchsorted(ordered, ordered[hits], side="left")
        last = np.searchsorted(ordered, ordered[hits], side="right")
        areas = np.full(len(self.weights), np.nan)
        for start in range(0, len(areas), _DRAWS_AT_ONCE):
            part = slice(start, start + _DRAWS_AT_ONCE)
            weights = self.weights[part][:, lesion].astype(np.int32)
            positives = weights[:, hits].astype(np.float64)
            weights[:, hits] = 0
            below = np.zeros((len(weights), len(ordered) + 1), np.int32)
            np.cumsum(weights, axis=1, out=below[:, 1:])
            ranked = (positives * (below[:, first] + below[:, last]) / 2).sum(axis=1)
            pairs = positives.sum(axis=1) * below[:, -1]
            areas[part] = np.divide(ranked, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
        return areas
