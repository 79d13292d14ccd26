"""The whole evaluation, on verdicts whose figures are known beforehand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from model.calibration import MAX_REFERRED, MAX_REFERRED_IN_CLASS, posterior
from model.crossfit import HeldOut, Verdicts, cross_fit
from model.evaluation import evaluate_out_of_fold, evaluate_verdicts
from model.labels import CLASSES
from model.metadata import PatientMetadata
from model.report import Evaluation

PRIOR = np.array([0.04, 0.06, 0.11, 0.02, 0.11, 0.64, 0.02])
MEL, NV = CLASSES.index("mel"), CLASSES.index("nv")


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    """Logits three times as sure as the truth warrants, of 4 000 images of 2 000 lesions."""
    generator = np.random.default_rng(0)
    honest = np.repeat(generator.normal(0, 1.5, (2000, 7)), 2, axis=0)
    truth = posterior(honest[::2], PRIOR)
    labels = np.repeat((truth.cumsum(axis=1) < generator.random((2000, 1))).sum(axis=1), 2)
    return HeldOut(
        logits=3 * honest + generator.normal(0, 0.1, honest.shape),
        distances=generator.gamma(9, 1, 4000),
        labels=labels,
        lesion_ids=[f"L{number // 2}" for number in range(4000)],
        folds=np.arange(4000) // 2 % 5,
        patients=[PatientMetadata(age=age, sex="female", localization="back") for age in range(4000 // 50)] * 50,
        dx_types=["histo" if label != NV else "follow_up" for label in labels.tolist()],
        prior=PRIOR,
        logits_without_metadata=3 * honest,
    )


@pytest.fixture(scope="module")
def evaluation(held_out: HeldOut) -> Evaluation:
    return evaluate_out_of_fold(held_out, draws=300)[1]


def verdicts(scores: list[float], labels: list[int], lesions: list[str], **more: object) -> Verdicts:
    """Verdicts with these posteriors of melanoma, and the rest on nv."""
    posteriors = np.zeros((len(scores), 7))
    posteriors[:, MEL] = scores
    posteriors[:, NV] = 1 - posteriors[:, MEL]
    nobody = np.zeros(len(scores), bool)
    made = Verdicts(
        uncalibrated=posteriors,
        posteriors=posteriors,
        prior=PRIOR,
        unfamiliar=nobody,
        unsure=nobody,
        threshold=0.5,
        labels=np.array(labels),
        lesion_ids=lesions,
        patients=[PatientMetadata()] * len(scores),
        dx_types=["histo"] * len(scores),
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def test_the_calibration_error_falls_without_a_row_judging_itself(held_out: HeldOut, evaluation: Evaluation) -> None:
    before, after = evaluation.calibration_before, evaluation.calibration

    for error in ("top_class", "diagnosis", "all_classes", "malignant"):
        assert getattr(after, error).value < 0.6 * getattr(before, error).value
    assert after.top_class.value is not None
    assert after.top_class.value < 0.03
    # The labels of a fold have no part in its own calibration
    spoilt = held_out.labels.copy()
    spoilt[held_out.folds == 0] = 0
    honest, changed = cross_fit(held_out), cross_fit(dataclasses.replace(held_out, labels=spoilt))
    before_it, after_it = honest.calibrations[0], changed.calibrations[0]
    assert (before_it.temperature, *before_it.offsets) == (after_it.temperature, *after_it.offsets)
    assert changed.calibrations[1].temperature != honest.calibrations[1].temperature


def test_a_single_fold_is_cross_fitted_in_parts_of_its_lesions(held_out: HeldOut) -> None:
    fitted = cross_fit(dataclasses.replace(held_out, folds=np.zeros(4000, np.int64)))

    assert len({one.temperature for one in fitted.calibrations}) == 5
    assert fitted.calibration.temperature == pytest.approx(3, abs=0.3)


def test_referral_keeps_its_ceilings_on_images_that_did_not_choose_it(evaluation: Evaluation) -> None:
    shares = [share for share in evaluation.referral.by_class.values() if share is not None]

    assert evaluation.referral.referred.value is not None
    assert 0.02 < evaluation.referral.referred.value <= MAX_REFERRED + 0.01
    assert max(shares) <= MAX_REFERRED_IN_CLASS + 0.05


def test_every_interval_holds_its_figure_and_the_report_survives_json(evaluation: Evaluation) -> None:
    for name in ("balanced_accuracy", "accuracy", "macro_auc", "malignant_auc", "f1", "precision", "specificity"):
        figure = getattr(evaluation, name)
        assert figure.low < figure.value < figure.high
    point = evaluation.operating_point
    assert point.threshold.low is not None
    assert point.threshold.high is not None
    assert point.threshold.low <= point.threshold.value <= point.threshold.high  # type: ignore[operator]
    assert evaluation.curves is not None
    assert set(evaluation.curves.roc) == {*CLASSES, "malignant"}
    assert Evaluation.model_validate(evaluation.model_dump(mode="json")) == evaluation


def test_metadata_that_add_nothing_gain_nothing_and_the_interval_says_so(evaluation: Evaluation) -> None:
    gain = evaluation.metadata_gain

    assert gain is not None
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low <= 0 <= gain.high
    assert gain.high - gain.low < 0.05


def test_a_referred_melanoma_counts_as_found_and_is_shown_apart() -> None:
    # Given two melanomas, one of them scored too low but referred
    made = verdicts(
        [0.9, 0.1, 0.1, 0.1], [MEL, MEL, NV, NV], ["a", "b", "c", "d"], unsure=np.array([False, True, False, False])
    )

    point = evaluate_verdicts(made, draws=50).operating_point

    assert point.sensitivity.value == point.melanoma_sensitivity.value == 1.0
    assert point.sensitivity_by_score.value == point.melanoma_sensitivity_by_score.value == 0.5
    assert point.specificity.value == point.specificity_by_score.value == 1.0


def test_a_lesion_is_found_when_any_of_its_images_is() -> None:
    made = verdicts([0.9, 0.1, 0.1, 0.6], [MEL, MEL, NV, NV], ["a", "a", "b", "c"])

    point = evaluate_verdicts(made, draws=50).operating_point

    assert point.lesions == 3
    assert point.prevalence == pytest.approx(1 / 3)
    assert point.sensitivity.value == 1.0
    assert point.specificity.value == 0.5


def test_nevi_known_from_follow_up_alone_stay_out_of_the_histology_figure() -> None:
    # Given that the only benign lesion left alone was never proven
    made = verdicts([0.9, 0.6, 0.1], [MEL, NV, NV], ["a", "b", "c"], dx_types=["histo", "histo", "follow_up"])

    point = evaluate_verdicts(made, draws=50).operating_point

    assert point.specificity.value == 0.5
    assert point.histology_specificity.value == 0.0
    assert (point.histology_lesions, point.lesions) == (2, 3)


def test_subgroups_name_who_they_are_and_how_many(evaluation: Evaluation) -> None:
    by_field = {field: [one for one in evaluation.subgroups if one.field == field] for field in ("age", "sex", "site")}

    assert [one.group for one in by_field["age"]] == ["under 30", "30 to 44", "45 to 59", "60 to 74", "75 and over"]
    assert [one.images for one in by_field["age"]] == [1500, 750, 750, 750, 250]
    assert [(one.group, one.images) for one in by_field["site"]] == [("posterior torso", 4000)]
    (women,) = by_field["sex"]
    assert women.balanced_accuracy == evaluation.balanced_accuracy
    assert women.sensitivity == evaluation.operating_point.sensitivity


def test_a_class_without_images_has_no_figures_and_hides_no_other() -> None:
    made = verdicts([0.9, 0.1, 0.8], [MEL, NV, NV], ["a", "b", "c"])

    figures = evaluate_verdicts(made, draws=50)

    assert figures.classes["df"].sensitivity.value is None
    assert figures.classes["df"].auc.value is None
    assert figures.classes["mel"].sensitivity.value == 1.0
    assert figures.balanced_accuracy.value == 0.75
