"""From logits to posteriors a hospital can act on: temperature, operating point and referral thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.labels import CLASSES, MALIGNANT_INDEX

MELANOMA: Final = CLASSES.index("mel")
#: Sensitivity by lesion asked of the operating point, for malignant lesions and for melanoma alone.
TARGET_SENSITIVITY: Final = 0.95
#: Shares of held-out images referred for each reason, and the ceilings they must keep together.
UNFAMILIAR_SHARE: Final = 0.02
LOW_CONFIDENCE_SHARE: Final = 0.03
MAX_REFERRED: Final = 0.05
MAX_REFERRED_IN_CLASS: Final = 0.15
#: Temperatures are sought from its inverse to this.
LARGEST_TEMPERATURE: Final = 5.0


def posterior(
    logits: NDArray[np.floating], prior: NDArray[np.float64], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Posterior at a prior: softmax(logits / T + log prior) (balanced softmax, Ren et al. 2020, equation 4).

    Args:
        logits: `(n, 7)` network outputs.
        prior: `(7,)` class frequencies.
        temperature: T of Guo et al. 2017.

    Returns:
        `(n, 7)` float64, rows summing to 1.
    """
    shifted = np.asarray(logits, np.float64) / temperature + np.log(prior)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def balanced_confidence(probabilities: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest of p_c / prior_c, renormalised: how sure the diagnosis is, whatever the frequency of its class.

    The posterior of a rare class is low by its prior alone, so a threshold on it would refer rare classes wholesale.
    """
    balanced = probabilities / prior
    return balanced.max(axis=1) / balanced.sum(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How logits become the posterior: softmax(logits / temperature + offsets + log prior).

    Attributes:
        temperature: T of Guo et al. 2017: above 1 where the network is too sure of itself.
        offsets: `(7,)` a class, together 0 (Alexandari et al. 2020, "bias-corrected temperature scaling"): a network
            that learnt its images by heart names the common classes too often, even after a loss that balances them.
    """

    temperature: float
    offsets: NDArray[np.float64]

    def apply(self, logits: NDArray[np.floating], prior: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the posterior of `(n, 7)` logits at a prior."""
        return posterior(logits + self.logit_offsets(), prior, self.temperature)

    def logit_offsets(self) -> NDArray[np.float64]:
        """Return what to add to the logits, `(7,)`, so that the temperature alone calibrates them."""
        return self.temperature * self.offsets


def fit_calibration(logits: NDArray[np.floating], prior: NDArray[np.float64], labels: NDArray[np.int64]) -> Calibration:
    """Fit temperature and offsets to held-out images, by their negative log likelihood.

    A normal prior of deviation 1 on each offset keeps a class that hardly occurs where it is.

    Args:
        logits: `(n, 7)` network outputs.
        prior: `(7,)` class frequencies the posterior assumes.
        labels: `(n,)` class indices.
    """
    from scipy.optimize import minimize

    wide, rows = np.asarray(logits, np.float64), np.arange(len(labels))

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        inverse, offsets = np.exp(point[0]), point[1:]
        found = posterior(wide * inverse + offsets, prior)
        value = -np.log(np.maximum(found[rows, labels], 1e-300)).sum() + (offsets**2).sum() / 2
        slope = found.copy()
        slope[rows, labels] -= 1
        by_offset = slope.sum(axis=0) + offsets
        return value / len(rows), np.concatenate([[(slope * wide).sum() * inverse], by_offset]) / len(rows)

    bounds = [(-np.log(LARGEST_TEMPERATURE), np.log(LARGEST_TEMPERATURE)), *[(None, None)] * len(CLASSES)]
    found = minimize(loss, np.zeros(1 + len(CLASSES)), jac=True, bounds=bounds, method="L-BFGS-B").x
    return Calibration(temperature=float(np.exp(-found[0])), offsets=found[1:] - found[1:].mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """Where an image counts as suspicious.

    Attributes:
        threshold: Malignant score at or above which a lesion is flagged.
        sensitivity: Share of malignant lesions flagged, on held-out lesions.
        sensitivity_interval: Its 95 % Wilson interval.
        melanoma_sensitivity: The same for melanoma alone.
        specificity: Share of benign lesions not flagged.
        prevalence: Share of malignant lesions among those measured.
        lesions: How many lesions were measured.
    """

    threshold: float
    sensitivity: float
    sensitivity_interval: tuple[float, float]
    melanoma_sensitivity: float
    specificity: float
    prevalence: float
    lesions: int


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    z = 1.959964
    share = successes / trials
    centre = share + z * z / (2 * trials)
    margin = z * float(np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)))
    scale = 1 + z * z / trials
    return ((centre - margin) / scale, (centre + margin) / scale)


def fit_operating_point(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], lesion_ids: Sequence[str]
) -> OperatingPoint:
    """Highest threshold with a sensitivity by lesion of 0.95, for malignant lesions and for melanoma alone.

    A lesion is flagged when any of its images is; the lower of the two thresholds is taken.

    Args:
        probabilities: `(n, 7)` posteriors of held-out images.
        labels: `(n,)` class indices.
        lesion_ids: Lesion of each image.
    """
    _, lesion = np.unique(np.asarray(lesion_ids), return_inverse=True)
    count = int(lesion.max()) + 1
    scores = np.zeros(count)
    np.maximum.at(scores, lesion, probabilities[:, MALIGNANT_INDEX].sum(axis=1))
    label = np.zeros(count, np.int64)
    label[lesion] = labels
    malignant, melanoma = np.isin(label, MALIGNANT_INDEX), label == MELANOMA
    threshold = min(_threshold(scores[malignant]), _threshold(scores[melanoma]))
    flagged = scores >= threshold
    hits = int(flagged[malignant].sum())
    return OperatingPoint(
        threshold=threshold,
        sensitivity=hits / int(malignant.sum()),
        sensitivity_interval=wilson_interval(hits, int(malignant.sum())),
        melanoma_sensitivity=float(flagged[melanoma].mean()),
        specificity=float((~flagged[~malignant]).mean()),
        prevalence=float(malignant.mean()),
        lesions=count,
    )


def _threshold(scores: NDArray[np.float64]) -> float:
    wanted = int(np.ceil(TARGET_SENSITIVITY * len(scores)))
    return float(np.sort(scores)[::-1][wanted - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferralThresholds:
    """When an image goes to a person whatever its score.

    Attributes:
        max_distance: Farther from the images of training than this: unfamiliar.
        min_confidence: Balanced confidence under this: too close to call.
        referred: Share of held-out images referred.
        referred_in_class: The same by class.
    """

    max_distance: float
    min_confidence: float
    referred: float
    referred_in_class: dict[str, float]


def fit_referral(
    distances: NDArray[np.float64], confidences: NDArray[np.float64], labels: NDArray[np.int64]
) -> ReferralThresholds:
    """Choose thresholds on held-out images: about 2 % unfamiliar and 3 % too close to call.

    Both shares shrink together until at most 5 % of all and 15 % of any class are referred.

    Args:
        distances: `(n,)` from `model.familiarity.measure_distance`.
        confidences: `(n,)` from `balanced_confidence`.
        labels: `(n,)` class indices.
    """
    for scale in np.linspace(1.0, 0.0, 21):
        far = float(np.quantile(distances, 1 - UNFAMILIAR_SHARE * scale))
        unsure = float(np.quantile(confidences, LOW_CONFIDENCE_SHARE * scale))
        referred = (distances > far) | (confidences < unsure)
        shares = {
            name: float(referred[labels == index].mean()) if (labels == index).any() else 0.0
            for index, name in enumerate(CLASSES)
        }
        if referred.mean() <= MAX_REFERRED and max(shares.values()) <= MAX_REFERRED_IN_CLASS:
            break
    return ReferralThresholds(
        max_distance=far, min_confidence=unsure, referred=float(referred.mean()), referred_in_class=shares
    )
