"""Judges a model's verdicts on labelled images: every figure of the report, with its interval by lesion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.bootstrap import DRAWS, Interval, LesionBootstrap, take_interval
from model.calibration import MELANOMA, TARGET_SENSITIVITY
from model.crossfit import CrossFit, HeldOut, Verdicts, cross_fit
from model.curves import trace_curves
from model.labels import CLASSES, MALIGNANT_INDEX
from model.metadata import PatientMetadata
from model.metrics import Outcomes, calibration_gaps, confusion_matrix, mean_over_classes, roc_area
from model.report import (
    CalibrationErrors,
    ClassFigures,
    Evaluation,
    OperatingFigures,
    ReferralFigures,
    Subgroup,
)

#: Bounds of the age bands in years: fifteen years each, ours, so that every band of HAM10000 holds hundreds of lesions.
AGE_BOUNDS: Final = (30, 45, 60, 75)
AGE_BANDS: Final = ("under 30", "30 to 44", "45 to 59", "60 to 74", "75 and over", "unknown")
#: How HAM10000 writes that a diagnosis was proven by a pathologist.
HISTOLOGY: Final = "histo"


def evaluate_out_of_fold(held_out: HeldOut, *, draws: int = DRAWS, seed: int = 0) -> tuple[CrossFit, Evaluation]:
    """Calibrate on held-out images and evaluate the cross-fitted verdicts.

    Args:
        held_out: Rows of one fold, or of all.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The values to ship, and the evaluation to state with them.
    """
    fitted = cross_fit(held_out)
    return fitted, evaluate_verdicts(fitted.verdicts, draws=draws, seed=seed)


def evaluate_verdicts(verdicts: Verdicts, *, draws: int = DRAWS, seed: int = 0) -> Evaluation:
    """Evaluate verdicts on labelled images.

    Args:
        verdicts: n labelled images, and what the model said.
        draws: Bootstrap draws; 2 000 over 9 000 images take seconds.
        seed: Seed of the bootstrap.
    """
    bootstrap = LesionBootstrap(verdicts.lesion_ids, draws=draws, seed=seed)
    labels, scores = verdicts.labels, verdicts.malignant_scores
    matrix, drawn = draw_confusion(bootstrap, labels, verdicts.diagnoses)
    found, spread = Outcomes.of(matrix), Outcomes.of(drawn)
    areas, area_draws = draw_class_areas(bootstrap, labels, verdicts.posteriors)
    top = np.argmax(verdicts.posteriors, axis=1)
    without, gain = _without_metadata(verdicts, bootstrap, spread)
    return Evaluation(
        images=len(labels),
        lesions=bootstrap.lesions,
        draws=draws,
        balanced_accuracy=take_interval(found.balanced_accuracy(), spread.balanced_accuracy()),
        paper_balanced_accuracy=take_interval(found.paper_balanced_accuracy(), spread.paper_balanced_accuracy()),
        accuracy=take_interval(found.accuracy(), spread.accuracy()),
        accuracy_of_posterior=_image_share(bootstrap, top == labels),
        precision=take_interval(mean_over_classes(found.precision()), mean_over_classes(spread.precision())),
        f1=take_interval(mean_over_classes(found.f1()), mean_over_classes(spread.f1())),
        specificity=take_interval(mean_over_classes(found.specificity()), mean_over_classes(spread.specificity())),
        macro_auc=take_interval(mean_over_classes(areas), mean_over_classes(area_draws)),
        malignant_auc=_area(bootstrap, scores, _is_malignant(labels)),
        balanced_accuracy_without_metadata=without,
        metadata_gain=gain,
        classes={
            name: _class_figures(found, spread, index, take_interval(areas[index], area_draws[:, index]))
            for index, name in enumerate(CLASSES)
        },
        confusion=tuple(tuple(row) for row in matrix.tolist()),
        calibration_before=_calibration_errors(verdicts, verdicts.uncalibrated, bootstrap),
        calibration=_calibration_errors(verdicts, verdicts.posteriors, bootstrap),
        operating_point=_operating_figures(verdicts, bootstrap),
        referral=_referral_figures(verdicts, bootstrap),
        subgroups=tuple(_subgroups(verdicts, bootstrap)),
        curves=trace_curves(verdicts),
    )


def _is_malignant(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.isin(labels, MALIGNANT_INDEX)


def draw_confusion(
    bootstrap: LesionBootstrap,
    labels: NDArray[np.int64],
    diagnoses: NDArray[np.int64],
    among: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count the confusion matrix `(7, 7)`, and that of each draw, `(draws, 7, 7)`.

    Args:
        bootstrap: Draws of the images' lesions.
        labels: `(n,)` class indices.
        diagnoses: `(n,)` class indices.
        among: `(n,)` which images count; None: all.
    """
    size = len(CLASSES)
    rows = np.flatnonzero(np.ones(len(labels), bool) if among is None else among)
    pairs = np.zeros((len(labels), size * size), np.float32)
    pairs[rows, labels[rows] * size + diagnoses[rows]] = 1
    matrix = confusion_matrix(labels[rows], diagnoses[rows])
    return matrix, bootstrap.sum(pairs).reshape(-1, size, size)


def _class_figures(found: Outcomes, spread: Outcomes, index: int, auc: Interval) -> ClassFigures:
    def interval(figure: str) -> Interval:
        value, draws = getattr(found, figure)(), getattr(spread, figure)()
        return take_interval(value[index], draws[:, index])

    return ClassFigures(
        true_positives=int(found.true_positives[index]),
        false_positives=int(found.false_positives[index]),
        false_negatives=int(found.false_negatives[index]),
        true_negatives=int(found.true_negatives[index]),
        sensitivity=interval("sensitivity"),
        specificity=interval("specificity"),
        precision=interval("precision"),
        f1=interval("f1"),
        auc=auc,
    )


def draw_class_areas(
    bootstrap: LesionBootstrap, labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure the ROC AUC of each class against the rest, `(7,)`, and that of each draw, `(draws, 7)`.

    Args:
        bootstrap: Draws of the images' lesions.
        labels: `(n,)` class indices.
        scores: `(n, 7)`, the higher the likelier.
    """
    columns = [(scores[:, index], labels == index) for index in range(len(CLASSES))]
    areas = np.array([roc_area(*column) for column in columns])
    draws = np.stack([bootstrap.area_under_curve(*column) for column in columns], axis=1)
    return areas, draws


def _area(
    bootstrap: LesionBootstrap,
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    among: NDArray[np.bool_] | None = None,
) -> Interval:
    chosen = slice(None) if among is None else among
    area = roc_area(scores[chosen], positive[chosen])
    return take_interval(area, bootstrap.area_under_curve(scores, positive, among))


def _image_share(
    bootstrap: LesionBootstrap, part: NDArray[np.bool_], among: NDArray[np.bool_] | None = None
) -> Interval:
    whole = np.ones(len(part), bool) if among is None else among
    drawn = bootstrap.sum(np.stack([part & whole, whole], axis=1))
    return _share(int((part & whole).sum()), int(whole.sum()), drawn)


def _lesion_share(bootstrap: LesionBootstrap, part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Interval:
    drawn = bootstrap.sum_lesions(np.stack([part & whole, whole], axis=1).astype(np.float32))
    return _share(int((part & whole).sum()), int(whole.sum()), drawn)


def _share(part: int, whole: int, drawn: NDArray[np.float64]) -> Interval:
    shares = np.divide(drawn[:, 0], drawn[:, 1], out=np.full(len(drawn), np.nan), where=drawn[:, 1] > 0)
    return take_interval(part / whole if whole else np.nan, shares)


def _without_metadata(
    verdicts: Verdicts, bootstrap: LesionBootstrap, spread: Outcomes
) -> tuple[Interval | None, Interval | None]:
    if verdicts.without_metadata is None:
        return None, None
    blind = np.argmax(verdicts.without_metadata / verdicts.prior, axis=1)
    matrix, drawn = draw_confusion(bootstrap, verdicts.labels, blind)
    value, draws = Outcomes.of(matrix).balanced_accuracy(), Outcomes.of(drawn).balanced_accuracy()
    whole = Outcomes.of(confusion_matrix(verdicts.labels, verdicts.diagnoses)).balanced_accuracy()
    return take_interval(value, draws), take_interval(whole - value, spread.balanced_accuracy() - draws)


def _calibration_errors(
    verdicts: Verdicts, posteriors: NDArray[np.float64], bootstrap: LesionBootstrap
) -> CalibrationErrors:
    labels, rows = verdicts.labels, np.arange(len(verdicts.labels))
    top, diagnoses = np.argmax(posteriors, axis=1), np.argmax(posteriors / verdicts.prior, axis=1)
    images = bootstrap.sum(np.ones((len(labels), 1)))

    def error(confidences: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
        gaps = calibration_gaps(confidences, correct)
        return float(np.abs(gaps.sum(axis=0)).sum() / len(gaps)), np.abs(bootstrap.sum(gaps)).sum(axis=1) / images[:, 0]

    by_class = [error(posteriors[:, index], labels == index) for index in range(len(CLASSES))]
    return CalibrationErrors(
        top_class=take_interval(*error(posteriors[rows, top], top == labels)),
        diagnosis=take_interval(*error(posteriors[rows, diagnoses], diagnoses == labels)),
        all_classes=take_interval(
            float(np.mean([value for value, _ in by_class])), np.mean([draws for _, draws in by_class], axis=0)
        ),
        malignant=take_interval(*error(posteriors[:, MALIGNANT_INDEX].sum(axis=1), _is_malignant(labels))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesions:
    """Verdicts by lesion, over the images that count; all arrays `(lesions,)`."""

    present: NDArray[np.bool_]
    score: NDArray[np.float64]
    referred: NDArray[np.bool_]
    malignant: NDArray[np.bool_]
    melanoma: NDArray[np.bool_]
    histology: NDArray[np.bool_]


def _by_lesion(verdicts: Verdicts, bootstrap: LesionBootstrap, among: NDArray[np.bool_] | None = None) -> _Lesions:
    rows = np.arange(len(verdicts.labels)) if among is None else np.flatnonzero(among)
    lesion = bootstrap.lesion[rows]
    score = np.full(bootstrap.lesions, -np.inf)
    np.maximum.at(score, lesion, verdicts.malignant_scores[rows])

    def mark(images: NDArray[np.bool_]) -> NDArray[np.bool_]:
        marked = np.zeros(bootstrap.lesions, bool)
        marked[lesion[images[rows]]] = True
        return marked

    return _Lesions(
        present=mark(np.ones(len(verdicts.labels), bool)),
        score=score,
        referred=mark(verdicts.referred),
        malignant=mark(_is_malignant(verdicts.labels)),
        melanoma=mark(verdicts.labels == MELANOMA),
        histology=mark(np.asarray(verdicts.dx_types) == HISTOLOGY),
    )


def _operating_figures(verdicts: Verdicts, bootstrap: LesionBootstrap) -> OperatingFigures:
    lesions = _by_lesion(verdicts, bootstrap)
    flagged = lesions.score >= verdicts.threshold
    seen, benign, proven = flagged | lesions.referred, ~lesions.malignant, lesions.histology
    thresholds = np.fmin(
        _thresholds(bootstrap, lesions.score, lesions.malignant),
        _thresholds(bootstrap, lesions.score, lesions.melanoma),
    )

    def share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Interval:
        return _lesion_share(bootstrap, part, whole)

    return OperatingFigures(
        threshold=take_interval(verdicts.threshold, thresholds),
        sensitivity=share(seen, lesions.malignant),
        sensitivity_by_score=share(flagged, lesions.malignant),
        melanoma_sensitivity=share(seen, lesions.melanoma),
        melanoma_sensitivity_by_score=share(flagged, lesions.melanoma),
        specificity=share(~seen, benign),
        specificity_by_score=share(~flagged, benign),
        histology_sensitivity=share(seen, lesions.malignant & proven),
        histology_specificity=share(~seen, benign & proven),
        histology_lesions=int(proven.sum()),
        prevalence=float(lesions.malignant.mean()),
        lesions=bootstrap.lesions,
    )


def _thresholds(
    bootstrap: LesionBootstrap, scores: NDArray[np.float64], wanted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    # The highest score at which each draw still flags its 95 %.
    order = np.flatnonzero(wanted)[np.argsort(-scores[wanted], kind="stable")]
    if not len(order):
        return np.full(len(bootstrap.weights), np.nan)
    flagged = np.cumsum(bootstrap.weights[:, order], axis=1, dtype=np.int32)
    last = np.argmax(flagged >= np.ceil(TARGET_SENSITIVITY * flagged[:, -1:]), axis=1)
    return np.where(flagged[:, -1] > 0, scores[order[last]], np.nan)


def _referral_figures(verdicts: Verdicts, bootstrap: LesionBootstrap) -> ReferralFigures:
    by_class = {name: verdicts.referred[verdicts.labels == index] for index, name in enumerate(CLASSES)}
    return ReferralFigures(
        referred=_image_share(bootstrap, verdicts.referred),
        unfamiliar=float(verdicts.unfamiliar.mean()),
        low_confidence=float(verdicts.unsure.mean()),
        by_class={name: float(rows.mean()) if len(rows) else None for name, rows in by_class.items()},
    )


def _subgroups(verdicts: Verdicts, bootstrap: LesionBootstrap) -> Iterator[Subgroup]:
    for field, names in subgroup_names(verdicts.patients).items():
        for group in AGE_BANDS if field == "age" else sorted(set(names)):
            among = np.asarray(names) == group
            if among.any():
                yield _subgroup(verdicts, bootstrap, field, group, among)


def subgroup_names(patients: Sequence[PatientMetadata]) -> dict[str, list[str]]:
    """Name the age band, sex and site of each patient, by field."""
    normalised = [patient.normalised() for patient in patients]
    return {
        "age": [_age_band(patient.age) for patient in normalised],
        "sex": [patient.sex or "unknown" for patient in normalised],
        "site": [patient.localization or "unknown" for patient in normalised],
    }


def _age_band(age: float | None) -> str:
    return AGE_BANDS[-1] if age is None else AGE_BANDS[int(np.searchsorted(AGE_BOUNDS, age, side="right"))]


def _subgroup(
    verdicts: Verdicts, bootstrap: LesionBootstrap, field: str, group: str, among: NDArray[np.bool_]
) -> Subgroup:
    matrix, drawn = draw_confusion(bootstrap, verdicts.labels, verdicts.diagnoses, among)
    lesions = _by_lesion(verdicts, bootstrap, among)
    seen = (lesions.score >= verdicts.threshold) | lesions.referred
    balanced = Outcomes.of(matrix).balanced_accuracy(), Outcomes.of(drawn).balanced_accuracy()
    return Subgroup(
        field=field,
        group=group,
        images=int(among.sum()),
        lesions=int(lesions.present.sum()),
        malignant_lesions=int(lesions.malignant.sum()),
        balanced_accuracy=take_interval(*balanced),
        malignant_auc=_area(bootstrap, verdicts.malignant_scores, _is_malignant(verdicts.labels), among),
        sensitivity=_lesion_share(bootstrap, seen, lesions.malignant),
        specificity=_lesion_share(bootstrap, ~seen, lesions.present & ~lesions.malignant),
        referred=_image_share(bootstrap, verdicts.referred, among),
    )
