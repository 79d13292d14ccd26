"""The gate: what it refuses, promotes, and leaves to a person."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from model.bootstrap import LesionBootstrap
from model.crossfit import Verdicts
from model.errors import GateError
from model.gate import LEVEL, MARGINS, GateDecision, GateFigure, GateReport, _holm, judge_candidate
from model.labels import CLASSES, MALIGNANT_INDEX
from model.metadata import PatientMetadata

#: HAM10000's mix, roughly, so that a gate set of a thousand lesions is as small as the real one.
MIX = (0.04, 0.06, 0.11, 0.01, 0.1, 0.66, 0.02)
DRAWS = 400


def gate_set(sharpness: float = 3.0, *, lesions: int = 1000, seed: int = 0) -> Verdicts:
    """Make a model's verdicts on a gate set; the sharper, the better. The same seed makes the same lesions."""
    generator = np.random.default_rng(seed)
    kinds = generator.choice(len(CLASSES), lesions, p=MIX)
    lesion = np.sort(generator.integers(0, lesions, lesions * 4 // 3))
    labels = kinds[lesion]
    noise = generator.normal(size=(len(labels), len(CLASSES)))
    # Independent unit normals about the truth: the posterior is known, and calibrated.
    evidence = sharpness * np.eye(len(CLASSES))[labels] + noise
    logits = sharpness * evidence + np.log(MIX)
    posteriors = np.exp(logits - logits.max(axis=1, keepdims=True))
    posteriors /= posteriors.sum(axis=1, keepdims=True)
    nobody = np.zeros(len(labels), bool)
    sexes = ("female", "male")
    return Verdicts(
        uncalibrated=posteriors,
        posteriors=posteriors,
        prior=np.asarray(MIX),
        unfamiliar=nobody,
        unsure=nobody,
        threshold=0.1,
        labels=labels.astype(np.int64),
        lesion_ids=[f"L{number:04d}" for number in lesion],
        patients=[PatientMetadata(age=50, sex=sexes[number % 2], localization="back") for number in lesion],
        dx_types=["histo"] * len(labels),
    )


def spoil(verdicts: Verdicts, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Verdicts:
    """Let a model say of these images what it says of others."""
    posteriors = verdicts.posteriors.copy()
    posteriors[rows] = np.random.default_rng(9).permutation(posteriors[rows])
    return replace(verdicts, posteriors=posteriors)


def figures(decision: GateDecision) -> dict[str, GateFigure]:
    return {figure.name: figure for figure in decision.figures}


def test_the_same_model_passes_and_every_figure_is_stored() -> None:
    decision = judge_candidate(gate_set(), gate_set(), draws=DRAWS)

    assert decision.verdict == "promote"
    found = figures(decision)
    assert set(found) == {
        "malignant_auc",
        "melanoma_sensitivity",
        "balanced_accuracy",
        "calibration_error",
        "malignant_calibration_error",
        *(
            f"subgroup_malignant_auc, {group}"
            for group in ("age 45 to 59", "sex female", "sex male", "site posterior torso")
        ),
    }
    assert all(figure.difference == figure.low == figure.high == 0 for figure in found.values())
    assert (decision.lesions, decision.draws) == (len(set(gate_set().lesion_ids)), DRAWS)
    assert GateDecision.model_validate_json(decision.model_dump_json()) == decision


def test_a_better_model_is_promoted_and_the_way_back_is_refused() -> None:
    good, poor = gate_set(4.0), gate_set(2.0)

    assert judge_candidate(good, poor, draws=DRAWS).verdict == "promote"
    back = judge_candidate(poor, good, draws=DRAWS)
    assert back.verdict == "refuse"
    assert {reason.partition(":")[0] for reason in back.reasons} >= {"malignant_auc", "balanced_accuracy"}


def test_a_model_that_may_or_may_not_be_worse_is_left_to_a_person() -> None:
    decision = judge_candidate(gate_set(2.9), gate_set(3.0), draws=DRAWS)

    assert decision.verdict == "undecided"
    assert all("does not exclude" in reason for reason in decision.reasons)


def test_a_model_of_shuffled_labels_is_refused() -> None:
    active = gate_set()
    candidate = spoil(active, np.ones(len(active.labels), bool))

    assert judge_candidate(candidate, active, draws=DRAWS).verdict == "refuse"


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_probabilities_that_are_no_numbers_are_refused(worst: float) -> None:
    active = gate_set()
    posteriors = active.posteriors.copy()
    posteriors[3, 2] = worst

    decision = judge_candidate(replace(active, posteriors=posteriors), active, draws=DRAWS)

    assert decision.verdict == "refuse"
    assert "not all numbers" in decision.reasons[0]


def test_a_model_that_fails_one_sex_is_refused_for_it() -> None:
    # Given a candidate that is good, but guesses a third of the women's images
    active = gate_set()
    women = np.array([patient.sex == "female" for patient in active.patients])
    unlucky = np.random.default_rng(3).random(len(women)) < 1 / 3

    decision = judge_candidate(spoil(active, women & unlucky), active, draws=DRAWS)

    assert decision.verdict == "refuse"
    assert any("sex female" in reason for reason in decision.reasons)
    assert not any("sex male" in reason for reason in decision.reasons)


def test_a_confidence_that_means_nothing_any_more_is_refused() -> None:
    # Given a candidate that ranks as well and is far too sure
    active = gate_set(1.5)
    sharp = active.prior * (active.posteriors / active.prior) ** 4
    candidate = replace(active, posteriors=sharp / sharp.sum(axis=1, keepdims=True))

    decision = judge_candidate(candidate, active, draws=DRAWS)

    assert decision.verdict == "refuse"
    assert any(reason.startswith("calibration_error") for reason in decision.reasons)
    assert not any(reason.startswith("balanced_accuracy") for reason in decision.reasons)


def test_melanoma_sensitivity_is_taken_at_the_active_models_specificity() -> None:
    # Given a candidate that scores everything half as high and ranks the same
    active = gate_set(2.5)
    posteriors = active.posteriors.copy()
    posteriors[:, MALIGNANT_INDEX] /= 2
    candidate = replace(active, posteriors=posteriors, threshold=0.9)

    decision = judge_candidate(candidate, active, draws=DRAWS)

    # Then its threshold plays no part
    figure = figures(decision)["melanoma_sensitivity"]
    assert figure.candidate == figure.active
    assert figure.low == figure.high == 0
    # And it is what a plain count says
    scores: dict[str, float] = {}
    for lesion, score in zip(active.lesion_ids, active.malignant_scores, strict=True):
        scores[lesion] = max(scores.get(lesion, 0), score)
    kind = dict(zip(active.lesion_ids, active.labels, strict=True))
    benign = sorted(score for lesion, score in scores.items() if kind[lesion] not in MALIGNANT_INDEX)
    assert decision.specificity is not None
    assert decision.specificity == pytest.approx(np.mean(np.array(benign) < active.threshold))
    last = benign[int(np.ceil(decision.specificity * len(benign))) - 1]
    melanomas = [scores[lesion] for lesion in scores if CLASSES[kind[lesion]] == "mel"]
    assert figure.active == pytest.approx(np.mean(np.array(melanomas) > last))


def test_models_judged_on_different_images_are_not_compared() -> None:
    with pytest.raises(GateError, match="different ones"):
        judge_candidate(gate_set(), gate_set(seed=1), draws=DRAWS)
    healthy = gate_set()
    rows = ~np.isin(healthy.labels, MALIGNANT_INDEX)
    benign = replace(
        healthy,
        posteriors=healthy.posteriors[rows],
        labels=healthy.labels[rows],
        lesion_ids=[lesion for lesion, kept in zip(healthy.lesion_ids, rows, strict=True) if kept],
    )
    with pytest.raises(GateError, match="only one kind"):
        judge_candidate(benign, benign, draws=DRAWS)


def test_holm_counts_how_many_groups_there_are() -> None:
    def figure(name: str, p_worse: float) -> GateFigure:
        rest = dict.fromkeys(("candidate", "active", "difference", "low", "high", "p_safe"), 0.0)
        return GateFigure(name=name, margin=MARGINS["subgroup_malignant_auc"], p_worse=p_worse, **rest)

    # Holm 1979: the smallest of three p must reach .05 / 3, the next .05 / 2, the last .05
    assert [one.name for one in _holm([figure("a", 0.03), figure("b", 0.01), figure("c", 0.02)])] == ["b", "c", "a"]
    assert [one.name for one in _holm([figure("a", 0.03), figure("b", 0.01), figure("c", 0.06)])] == ["b"]
    assert _holm([figure("a", LEVEL), figure("b", LEVEL)]) == []


def test_a_stratified_draw_holds_as_many_lesions_of_each_kind_as_there_are() -> None:
    verdicts = gate_set(lesions=200)
    bootstrap = LesionBootstrap(verdicts.lesion_ids, draws=50, seed=1, strata=verdicts.labels)

    kinds = np.zeros(bootstrap.lesions, np.int64)
    kinds[bootstrap.lesion] = verdicts.labels
    for kind in np.unique(kinds):
        assert set(bootstrap.weights[:, kinds == kind].sum(axis=1)) == {int((kinds == kind).sum())}
    # And draws differ
    assert len(np.unique(bootstrap.weights, axis=0)) == 50
    assert set(bootstrap.once().weights[0]) == {1}


@pytest.mark.parametrize(
    ("verdict", "independent", "told"),
    [("promote", True, "promote"), ("promote", False, "undecided"), ("refuse", False, "refuse")],
)
def test_a_gate_set_of_the_candidates_own_data_promotes_nothing_by_itself(
    verdict: Literal["refuse", "promote"], independent: bool, told: str
) -> None:
    decision = GateDecision(verdict=verdict, reasons=(), images=1, lesions=1, malignant_lesions=1, draws=1, seed=0)
    described: dict[str, Any] = {"active": "a", "gate_set": "g", "uses": 1}

    assert GateReport(**described, independent=independent, decision=decision).verdict == told
    assert GateReport(**described, independent=True, decision=None, problem="why").verdict == "undecided"
