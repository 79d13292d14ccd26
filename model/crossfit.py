"""Calibration and referral chosen on some folds of held-out images and judged on another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.calibration import (
    Calibration,
    OperatingPoint,
    ReferralThresholds,
    balanced_confidence,
    fit_calibration,
    fit_operating_point,
    fit_referral,
    posterior,
)
from model.labels import MALIGNANT_INDEX
from model.metadata import PatientMetadata

#: Parts a single held-out fold is cut into by lesion, so that it too can be calibrated on images other than it judges.
PARTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What networks said about images of lesions they did not train on: the n rows of one fold, or of all.

    Attributes:
        logits: `(n, 7)` network outputs, before any prior.
        distances: `(n,)` from `FeatureSpace.distance`, in the space of the same network's own training images.
        labels: `(n,)` class indices.
        lesion_ids: Lesion of each image.
        folds: `(n,)` which fold, and so which network, a row comes from.
        patients: Age, sex and site of each.
        dx_types: How each diagnosis was made ("histo", "follow_up", "consensus", "confocal"), or "".
        prior: `(7,)` class frequencies in training.
        logits_without_metadata: `(n, 7)` with all metadata removed, or None if that was not asked.
    """

    logits: NDArray[np.floating]
    distances: NDArray[np.floating]
    labels: NDArray[np.int64]
    lesion_ids: Sequence[str]
    folds: NDArray[np.int64]
    patients: Sequence[PatientMetadata]
    dx_types: Sequence[str]
    prior: NDArray[np.float64]
    logits_without_metadata: NDArray[np.floating] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What a model, thresholds and all, says about n labelled images; what an evaluation judges.

    Attributes:
        uncalibrated: `(n, 7)` posteriors at temperature 1, and without offsets unless `packed`.
        posteriors: `(n, 7)` calibrated posteriors.
        prior: `(7,)` class frequencies they assume.
        unfamiliar: `(n,)` referred because nothing like it was seen in training.
        unsure: `(n,)` referred because it is too close to call.
        threshold: Malignant score at or above which a lesion is flagged.
        labels: `(n,)` class indices.
        lesion_ids: Lesion of each image.
        patients: Age, sex and site of each.
        dx_types: How each diagnosis was made, or "".
        without_metadata: `(n, 7)` calibrated posteriors with all metadata removed, or None.
        packed: Whether a packed model said this: the offsets of its calibration are part of its last bias, and nothing
            states them, so that `uncalibrated` has them too.
    """

    uncalibrated: NDArray[np.float64]
    posteriors: NDArray[np.float64]
    prior: NDArray[np.float64]
    unfamiliar: NDArray[np.bool_]
    unsure: NDArray[np.bool_]
    threshold: float
    labels: NDArray[np.int64]
    lesion_ids: Sequence[str]
    patients: Sequence[PatientMetadata]
    dx_types: Sequence[str]
    without_metadata: NDArray[np.float64] | None = None
    packed: bool = False

    @property
    def referred(self) -> NDArray[np.bool_]:
        """`(n,)` whether a person must look whatever the score."""
        return self.unfamiliar | self.unsure

    @property
    def diagnoses(self) -> NDArray[np.int64]:
        """`(n,)` argmax of posterior / prior."""
        return np.argmax(self.posteriors / self.prior, axis=1)

    @property
    def malignant_scores(self) -> NDArray[np.float64]:
        """`(n,)` posterior of akiec, bcc and mel together."""
        return self.posteriors[:, MALIGNANT_INDEX].sum(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossFit:
    """What held-out images yield: the values to ship, fitted to all of them, and verdicts on each of them.

    Calibration and referral thresholds of a row's verdict are fitted to other lesions. The operating point's threshold
    is not: it is chosen on the scores of all rows, the judged ones among them.

    Attributes:
        calibration: Temperature and offsets fitted to all rows.
        calibrations: What each fold was judged with, fitted to the other folds.
        operating_point: Chosen on the cross-fitted scores of all rows.
        referral: Thresholds fitted to all rows, with the shares they refer there.
        verdicts: Each row with the calibration and the referral thresholds of the other folds, at the operating point
            of all.
    """

    calibration: Calibration
    calibrations: tuple[Calibration, ...]
    operating_point: OperatingPoint
    referral: ReferralThresholds
    verdicts: Verdicts


def cross_fit(held_out: HeldOut) -> CrossFit:
    """Fit calibration, operating point and referral thresholds, and judge each row.

    No row is calibrated or referred by what was fitted to it. The threshold of the operating point is one number,
    chosen on the cross-fitted scores of all rows: at it, the sensitivity by the score is the one that was asked for.
    With one fold alone, five parts of its lesions stand in for folds.
    """
    count = len(held_out.labels)
    calibrated = np.empty((count, held_out.logits.shape[1]))
    without = None if held_out.logits_without_metadata is None else np.empty_like(calibrated)
    unfamiliar, unsure = np.zeros(count, bool), np.zeros(count, bool)
    calibrations = []
    for judged, others in _fold_pairs(held_out):
        calibration = _fit_calibration(held_out, others)
        calibrations.append(calibration)
        calibrated[judged] = calibration.apply(held_out.logits[judged], held_out.prior)
        if without is not None and held_out.logits_without_metadata is not None:
            without[judged] = calibration.apply(held_out.logits_without_metadata[judged], held_out.prior)
        thresholds = _fit_referral(held_out, calibration, others)
        sure = balanced_confidence(calibrated[judged], held_out.prior)
        unfamiliar[judged] = held_out.distances[judged] > thresholds.max_distance
        unsure[judged] = ~unfamiliar[judged] & (sure < thresholds.min_confidence)
    everything = np.arange(count)
    calibration = _fit_calibration(held_out, everything)
    point = fit_operating_point(calibrated, held_out.labels, held_out.lesion_ids)
    return CrossFit(
        calibration=calibration,
        calibrations=tuple(calibrations),
        operating_point=point,
        referral=_fit_referral(held_out, calibration, everything),
        verdicts=Verdicts(
            uncalibrated=posterior(held_out.logits, held_out.prior),
            posteriors=calibrated,
            prior=held_out.prior,
            unfamiliar=unfamiliar,
            unsure=unsure,
            threshold=point.threshold,
            labels=held_out.labels,
            lesion_ids=held_out.lesion_ids,
            patients=held_out.patients,
            dx_types=held_out.dx_types,
            without_metadata=without,
        ),
    )


def _fold_pairs(held_out: HeldOut) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = held_out.folds
    if len(np.unique(folds)) == 1:
        splitter = StratifiedGroupKFold(PARTS, shuffle=True, random_state=0)
        folds = np.empty(len(folds), np.int64)
        for part, (_, judged) in enumerate(splitter.split(folds, held_out.labels, list(held_out.lesion_ids))):
            folds[judged] = part
    for fold in np.unique(folds):
        yield np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)


def _fit_calibration(held_out: HeldOut, rows: NDArray[np.intp]) -> Calibration:
    return fit_calibration(held_out.logits[rows], held_out.prior, held_out.labels[rows])


def _fit_referral(held_out: HeldOut, calibration: Calibration, rows: NDArray[np.intp]) -> ReferralThresholds:
    sure = balanced_confidence(calibration.apply(held_out.logits[rows], held_out.prior), held_out.prior)
    return fit_referral(np.asarray(held_out.distances[rows], np.float64), sure, held_out.labels[rows])
