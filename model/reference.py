"""What held-out images looked like to a model, in bins: later batches are compared with it to notice drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.metadata import SITES, PatientMetadata

#: Inner bounds of the age bins in years: twenty each, and those of unknown age are the last bin.
AGE_BOUNDS: Final = (20.0, 40.0, 60.0, 80.0)
#: Bins of equal frequency for figures that have no natural ones, as the population stability index is used.
QUANTILES: Final = 10


class Reference(BaseModel):
    """Histograms of held-out images.

    Attributes:
        images: How many there were.
        bounds: Inner bounds of "age", "malignant_score" and "distance": a bin holds what is at or above its lower
            bound and below its upper one.
        counts: Images in each bin of these and of "localization", whose bins are `model.metadata.SITES`; "age" has
            one bin more, for the unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: int
    bounds: dict[str, tuple[float, ...]]
    counts: dict[str, tuple[int, ...]]


def make_reference(
    patients: Sequence[PatientMetadata], malignant_scores: NDArray[np.floating], distances: NDArray[np.floating]
) -> Reference:
    """Count held-out images into bins.

    Args:
        patients: n patients.
        malignant_scores: `(n,)` calibrated scores of images that the model did not learn from.
        distances: `(n,)` from `model.calibration.FeatureSpace.distance`.

    Returns:
        The reference.
    """
    known = [patient.normalised() for patient in patients]
    ages = np.array([patient.age for patient in known if patient.age is not None], np.float64)
    sites = Counter(patient.localization for patient in known)
    bounds = {
        "age": AGE_BOUNDS,
        "malignant_score": _quantiles(malignant_scores),
        "distance": _quantiles(distances),
    }
    return Reference(
        images=len(patients),
        bounds=bounds,
        counts={
            "age": (*_count(ages, bounds["age"]), len(known) - len(ages)),
            "localization": tuple(sites[site] for site in SITES),
            "malignant_score": _count(malignant_scores, bounds["malignant_score"]),
            "distance": _count(distances, bounds["distance"]),
        },
    )


def _quantiles(values: NDArray[np.floating]) -> tuple[float, ...]:
    inner = np.quantile(values, np.arange(1, QUANTILES) / QUANTILES)
    return tuple(sorted({float(f"{value:.5g}") for value in inner}))


def _count(values: NDArray[np.floating], bounds: Sequence[float]) -> tuple[int, ...]:
    bins = np.searchsorted(np.asarray(bounds), values, side="right")
    return tuple(np.bincount(bins, minlength=len(bounds) + 1).tolist())
