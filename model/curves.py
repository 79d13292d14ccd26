"""Curves of an evaluation as a bounded number of points, which a report draws without the verdicts."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.calibration import wilson_interval
from model.crossfit import Verdicts
from model.labels import CLASSES, MALIGNANT_INDEX
from model.metrics import CALIBRATION_BINS, calibration_bin
from model.report import MALIGNANT, Curves, ReliabilityBin

#: Points of a ROC curve at most: a hundredth of its length from one to the next is less than a page can show.
MOST_POINTS: Final = 100
#: A stored point is rounded to so many digits.
_DIGITS: Final = 4


def trace_curves(verdicts: Verdicts) -> Curves:
    """Trace the ROC and reliability curves of verdicts on labelled images.

    Args:
        verdicts: n labelled images, and what the model said.
    """
    labels, scores = verdicts.labels, verdicts.malignant_scores
    malignant = np.isin(labels, MALIGNANT_INDEX)
    columns = {name: (verdicts.posteriors[:, index], labels == index) for index, name in enumerate(CLASSES)}
    columns[MALIGNANT] = scores, malignant
    roc = {name: points for name, column in columns.items() if (points := trace_roc(*column))}
    flagged = scores >= verdicts.threshold
    return Curves(
        roc=roc,
        flagged=_point(flagged[~malignant].mean(), flagged[malignant].mean()) if MALIGNANT in roc else None,
        reliability_before=_reliability(verdicts.uncalibrated, labels, malignant),
        reliability=_reliability(verdicts.posteriors, labels, malignant),
    )


def trace_roc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Trace a ROC curve, thinned evenly along its length.

    Args:
        scores: `(n,)`.
        positive: `(n,)` which images are positive.

    Returns:
        Shares of negatives and of positives at or above a threshold, from (0, 0) to (1, 1), at most `MOST_POINTS`;
        none where there is only one kind.
    """
    from sklearn.metrics import roc_curve

    if not 0 < np.count_nonzero(positive) < len(positive):
        return ()
    alarms, hits, _ = roc_curve(positive, scores)
    # Both shares only rise, so that their sum, from 0 to 2, tells how far along the curve a point is.
    chosen = np.unique(np.searchsorted(alarms + hits, np.linspace(0, 2, MOST_POINTS), side="left"))
    return tuple(_point(alarms[index], hits[index]) for index in np.minimum(chosen, len(hits) - 1))


def bin_confidences(confidences: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    """Compare confidence with truth in the bins of the calibration error (Guo et al. 2017, section 2).

    Args:
        confidences: `(n,)` in [0, 1].
        correct: `(n,)` whether what the confidence is about is the case.

    Returns:
        The bins that hold an image, in the order of confidence.
    """
    bins = calibration_bin(confidences)
    made = []
    for index in range(CALIBRATION_BINS):
        held = bins == index
        if not (images := int(held.sum())):
            continue
        hits = int(correct[held].sum())
        low, high = wilson_interval(hits, images)
        share = hits / images
        # Of no image or all of them, a bound lies a rounding error on the wrong side of the share.
        figures = (confidences[held].mean(), share, min(low, share), max(high, share))
        confidence, share, low, high = (round(float(figure), _DIGITS) for figure in figures)
        made.append(ReliabilityBin(images=images, confidence=confidence, share=share, low=low, high=high))
    return tuple(made)


def _reliability(
    posteriors: NDArray[np.float64], labels: NDArray[np.int64], malignant: NDArray[np.bool_]
) -> dict[str, tuple[ReliabilityBin, ...]]:
    return {
        "top_class": bin_confidences(posteriors.max(axis=1), posteriors.argmax(axis=1) == labels),
        MALIGNANT: bin_confidences(posteriors[:, MALIGNANT_INDEX].sum(axis=1), malignant),
    }


def _point(alarms: float | np.floating, hits: float | np.floating) -> tuple[float, float]:
    return round(float(alarms), _DIGITS), round(float(hits), _DIGITS)
