"""What an evaluation states: figures with intervals by lesion, as the manifest and the model card hold them."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from model.bootstrap import Interval

#: Names the malignant score among the curves.
MALIGNANT: Final = "malignant"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassFigures(_Part):
    """One class against the rest."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    sensitivity: Interval
    specificity: Interval
    precision: Interval
    f1: Interval
    auc: Interval


class CalibrationErrors(_Part):
    """Expected calibration errors over 15 equal-width bins.

    Resampling adds noise to every bin, so these intervals lie a little high (the error is a sum of absolute values).

    Attributes:
        top_class: Of the posterior's own argmax (Guo et al. 2017, equation 3).
        diagnosis: Of `confidence`: the posterior of the diagnosis, against whether the diagnosis is right.
        all_classes: Of each class's posterior against whether the image is of it, averaged over the classes.
        malignant: Of the malignant score against whether the lesion is malignant.
    """

    top_class: Interval
    diagnosis: Interval
    all_classes: Interval
    malignant: Interval


class OperatingFigures(_Part):
    """What the operating point does, by lesion: a lesion is flagged where any of its images is.

    Attributes:
        threshold: Malignant score, with the interval of choosing it anew on each draw.
        sensitivity: Share of malignant or premalignant lesions flagged or referred.
        sensitivity_by_score: The same by the score alone, referral left out of account.
        melanoma_sensitivity: Share of melanomas flagged or referred.
        melanoma_sensitivity_by_score: The same by the score alone.
        specificity: Share of benign lesions neither flagged nor referred.
        specificity_by_score: Share of benign lesions not flagged.
        histology_sensitivity: As `sensitivity`, of the malignant lesions that a pathologist proved.
        histology_specificity: As `specificity`, of the benign lesions that a pathologist proved: nevi known from
            follow-up alone are easier.
        histology_lesions: How many lesions a pathologist proved.
        prevalence: Share of malignant lesions.
        lesions: How many lesions were judged.
    """

    threshold: Interval
    sensitivity: Interval
    sensitivity_by_score: Interval
    melanoma_sensitivity: Interval
    melanoma_sensitivity_by_score: Interval
    specificity: Interval
    specificity_by_score: Interval
    histology_sensitivity: Interval
    histology_specificity: Interval
    histology_lesions: int
    prevalence: float
    lesions: int


class ReferralFigures(_Part):
    """Shares of images that go to a person whatever their score."""

    referred: Interval
    unfamiliar: float
    low_confidence: float
    by_class: dict[str, float | None]


class Subgroup(_Part):
    """Figures of one group of patients, at the same operating point."""

    field: str
    group: str
    images: int
    lesions: int
    malignant_lesions: int
    balanced_accuracy: Interval
    malignant_auc: Interval
    sensitivity: Interval
    specificity: Interval
    referred: Interval


class MapFigures(_Part):
    """How fast the diagnosis loses its support when pixels are deleted in a map's order.

    Attributes:
        area: Mean area under the deletion curve: lower where the map finds earlier what the model uses.
        less_than_random: Area of random orders minus this one's on the same images: above 0 where the map tells more
            than chance.
        attention_minus: Area of attention minus this one's on the same images: above 0 where this one tells more than
            attention; None for attention itself.
    """

    area: Interval
    less_than_random: Interval
    attention_minus: Interval | None = None


class Explanation(_Part):
    """The deletion test.

    Attributes:
        images: How many images, each of another lesion.
        maps: Figures of "attention", of "evidence" (what worklists draw), of "grad_cam" (the baseline), and of "centre"
            (pixels from the middle outwards, knowing nothing of the model: lesions are photographed in the middle).
        random: Mean area of the random orders; None if it was not kept.
        fill: What deleted pixels become: the colour of the image's "border", or its "blur".
    """

    images: int
    maps: dict[str, MapFigures]
    random: Interval | None = None
    fill: Literal["border", "blur"] = "border"


class Trial(_Part):
    """Something that was tried, and what it gave on the lesions named.

    Attributes:
        name: What was different, in words.
        judged_on: Which lesions, in words.
        balanced_accuracy: Of `diagnosis`.
        macro_auc: Mean over the classes.
        melanoma_recall: Sensitivity of `diagnosis` for melanoma.
    """

    name: str
    judged_on: str
    balanced_accuracy: Interval
    macro_auc: Interval
    melanoma_recall: Interval


class ReliabilityBin(_Part):
    """Images whose confidences lie in one of 15 bins of equal width.

    Attributes:
        images: How many there are.
        confidence: Mean of their confidences.
        share: Of how many of them it is the case.
        low: Of the share: 95 % by Wilson 1927, which takes the images for independent.
        high: Of the share.
    """

    images: int
    confidence: float
    share: float
    low: float
    high: float


class Curves(_Part):
    """Points to draw curves through; by image, not by lesion.

    Attributes:
        roc: By class, each against the rest, and of the malignant score ("malignant"): shares of negatives and of
            positives at or above a threshold, from (0, 0) to (1, 1). A class that is absent has none.
        flagged: The point of the malignant score's curve at the operating point.
        reliability_before: Of the posterior's argmax ("top_class") and the malignant score, uncalibrated; see
            `Evaluation.calibration_before`.
        reliability: The same, calibrated.
    """

    roc: dict[str, tuple[tuple[float, float], ...]]
    flagged: tuple[float, float] | None
    reliability_before: dict[str, tuple[ReliabilityBin, ...]]
    reliability: dict[str, tuple[ReliabilityBin, ...]]


class Evaluation(_Part):
    """Everything that is said about a model's verdicts on labelled images.

    Attributes:
        images: How many images were judged.
        lesions: How many lesions they show.
        draws: Bootstrap draws behind every interval.
        balanced_accuracy: ISIC's: mean recall of `diagnosis`.
        paper_balanced_accuracy: The paper's: mean of (sensitivity + specificity) / 2.
        accuracy: Of `diagnosis`.
        accuracy_of_posterior: Of the posterior's own argmax.
        precision: Mean over the classes.
        f1: Mean over the classes.
        specificity: Mean over the classes.
        macro_auc: Mean over the classes of the ROC AUC of their posterior.
        malignant_auc: ROC AUC of the malignant score.
        balanced_accuracy_without_metadata: As `balanced_accuracy` with all metadata removed; None if not asked.
        metadata_gain: What metadata add to the balanced accuracy, on the same draws; None if not asked.
        classes: Figures of each class.
        confusion: `[true][diagnosed]` counts in the order of `CLASSES`.
        calibration_before: At temperature 1. Where networks were cross-fitted, as on a model's card, without offsets
            too; where `lesion-model evaluate` or the gate asked a packed model, with its offsets, which its last bias
            carries: there the difference is what the temperature does.
        calibration: Calibrated by what no judged image had a part in.
        operating_point: At the stored threshold.
        referral: What is referred.
        subgroups: By age band, sex and site.
        explanation: The deletion test, or None if that was not asked.
        trials: What was tried on the way to the model.
        curves: Points of the ROC and reliability curves, or None of a model from before they were kept.
    """

    images: int
    lesions: int
    draws: int
    balanced_accuracy: Interval
    paper_balanced_accuracy: Interval
    accuracy: Interval
    accuracy_of_posterior: Interval
    precision: Interval
    f1: Interval
    specificity: Interval
    macro_auc: Interval
    malignant_auc: Interval
    balanced_accuracy_without_metadata: Interval | None
    metadata_gain: Interval | None
    classes: dict[str, ClassFigures]
    confusion: tuple[tuple[int, ...], ...]
    calibration_before: CalibrationErrors
    calibration: CalibrationErrors
    operating_point: OperatingFigures
    referral: ReferralFigures
    subgroups: tuple[Subgroup, ...]
    explanation: Explanation | None = None
    trials: tuple[Trial, ...] = ()
    curves: Curves | None = None
