"""Figures of merit of a classifier, each by its textbook definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.labels import CLASSES, MALIGNANT_INDEX

#: Bins of the calibration error (Guo et al. 2017, section 2).
CALIBRATION_BINS: Final = 15


def confusion_matrix(labels: NDArray[np.int64], diagnoses: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count `(true, diagnosed)` pairs into a `(7, 7)` matrix."""
    size = len(CLASSES)
    return np.bincount(labels * size + diagnoses, minlength=size * size).reshape(size, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Each class against the rest: counts `(..., 7)`, of one confusion matrix or of a stack of them.

    A figure is NaN where its denominator is zero: a class without images has no sensitivity, one that is never
    diagnosed no precision. Means over classes leave those out.

    Attributes:
        true_positives: Images of the class diagnosed as it.
        false_positives: Images of other classes diagnosed as it.
        false_negatives: Images of the class diagnosed as another.
        true_negatives: The rest.
    """

    true_positives: NDArray[np.floating]
    false_positives: NDArray[np.floating]
    false_negatives: NDArray[np.floating]
    true_negatives: NDArray[np.floating]

    @classmethod
    def of(cls, matrix: NDArray[np.int64] | NDArray[np.floating]) -> Outcomes:
        """Count the outcomes of `(..., 7, 7)` confusion matrices."""
        hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
        diagnosed, true = matrix.sum(axis=-2), matrix.sum(axis=-1)
        total = true.sum(axis=-1, keepdims=True)
        return cls(
            true_positives=hits,
            false_positives=diagnosed - hits,
            false_negatives=true - hits,
            true_negatives=total - diagnosed - true + hits,
        )

    def sensitivity(self) -> NDArray[np.float64]:
        """TP / (TP + FN), the recall; `(..., 7)`."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    def specificity(self) -> NDArray[np.float64]:
        """TN / (TN + FP); `(..., 7)`."""
        return _share(self.true_negatives, self.true_negatives + self.false_positives)

    def precision(self) -> NDArray[np.float64]:
        """TP / (TP + FP); `(..., 7)`."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    def f1(self) -> NDArray[np.float64]:
        """2 TP / (2 TP + FP + FN); `(..., 7)`. The paper's equation prints + TN, which its own figures do not use."""
        twice = 2 * self.true_positives
        return _share(twice, twice + self.false_positives + self.false_negatives)

    def accuracy(self) -> NDArray[np.float64]:
        """Share of images diagnosed rightly; `(...)`."""
        hits = self.true_positives.sum(axis=-1)
        return _share(hits, hits + self.false_negatives.sum(axis=-1))

    def balanced_accuracy(self) -> NDArray[np.float64]:
        """ISIC's balanced accuracy: mean sensitivity over the classes present; `(...)`."""
        return mean_over_classes(self.sensitivity())

    def paper_balanced_accuracy(self) -> NDArray[np.float64]:
        """The paper's: (sensitivity + specificity) / 2 of each class, averaged (its Table 7); `(...)`."""
        return mean_over_classes((self.sensitivity() + self.specificity()) / 2)


def _share(part: NDArray[np.floating], whole: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def mean_over_classes(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of `(..., 7)` figures over the classes where they are defined; NaN where none is."""
    defined = ~np.isnan(figures)
    return _share(np.where(defined, figures, 0.0).sum(axis=-1), defined.sum(axis=-1))


def recall_by_class(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sensitivity of each class; NaN for a class with no image."""
    return Outcomes.of(matrix).sensitivity()


def balanced_accuracy(matrix: NDArray[np.int64]) -> float:
    """ISIC's balanced accuracy: the mean recall over the classes present."""
    return float(Outcomes.of(matrix).balanced_accuracy())


def calibration_gaps(
    confidences: NDArray[np.float64], correct: NDArray[np.bool_], *, bins: int = CALIBRATION_BINS
) -> NDArray[np.float64]:
    """Confidence minus truth of each image, in the column of its bin: `(n, bins)`, of equal width.

    Args:
        confidences: `(n,)` in [0, 1].
        correct: `(n,)` whether what the confidence is about is the case.
        bins: Number of bins.
    """
    gaps = np.zeros((len(confidences), bins))
    gaps[np.arange(len(confidences)), calibration_bin(confidences, bins=bins)] = confidences - correct
    return gaps


def calibration_bin(confidences: NDArray[np.float64], *, bins: int = CALIBRATION_BINS) -> NDArray[np.int64]:
    """Bin of each confidence among `bins` of equal width over [0, 1]; `(n,)`."""
    return np.minimum((confidences * bins).astype(np.int64), bins - 1)


def expected_calibration_error(
    confidences: NDArray[np.float64], correct: NDArray[np.bool_], *, bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error over equal-width bins (Guo et al. 2017, equation 3), of the same arguments."""
    gaps = calibration_gaps(confidences, correct, bins=bins)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))


def roc_area(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties counting half; NaN where there is only one kind.

    Args:
        scores: `(n,)`.
        positive: `(n,)`.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores)) if 0 < np.count_nonzero(positive) < len(positive) else float("nan")


def summarise(
    probabilities: NDArray[np.float64], prior: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, float | dict[str, float]]:
    """Judge posteriors against the truth.

    Args:
        probabilities: `(n, 7)` posteriors at `prior`.
        prior: `(7,)` class frequencies the posteriors assume.
        labels: `(n,)` class indices.

    Returns:
        Balanced accuracy, accuracy, macro AUC and malignant AUC, calibration error, and recall by class, where the
        diagnosis is argmax p_c / prior_c; the accuracy and calibration error are of the posterior's own argmax.
    """
    matrix = confusion_matrix(labels, np.argmax(probabilities / prior, axis=1))
    recalls = recall_by_class(matrix)
    top = np.argmax(probabilities, axis=1)
    areas = np.array([roc_area(probabilities[:, index], labels == index) for index in range(len(CLASSES))])
    malignant = probabilities[:, MALIGNANT_INDEX].sum(axis=1)
    return {
        "images": float(len(labels)),
        "balanced_accuracy": balanced_accuracy(matrix),
        "accuracy": float(np.mean(np.argmax(probabilities / prior, axis=1) == labels)),
        "accuracy_of_posterior": float(np.mean(top == labels)),
        "macro_auc": float(mean_over_classes(areas)),
        "malignant_auc": roc_area(malignant, np.isin(labels, MALIGNANT_INDEX)),
        "calibration_error": expected_calibration_error(probabilities.max(axis=1), top == labels),
        "recall": {name: float(value) for name, value in zip(CLASSES, recalls, strict=True)},
    }
