"""The gate: may a candidate replace the active model? Judged pair by pair on lesions that neither was trained on.

A thousand lesions cannot prove "not worse" to a point, so each figure has a margin. The gate refuses where the
candidate is worse by more than a margin, promotes where that can be excluded for every figure, and else leaves it to a
person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.bootstrap import DRAWS, LesionBootstrap
from model.calibration import MELANOMA
from model.crossfit import Verdicts
from model.errors import GateError
from model.evaluation import draw_confusion, subgroup_names
from model.labels import CLASSES, MALIGNANT_INDEX
from model.metrics import Outcomes, calibration_gaps

#: One-sided level of every test.
LEVEL: Final = 0.05
#: How much worse a candidate may be, in each figure's own unit.
MARGINS: Final = {
    "malignant_auc": 0.01,
    "melanoma_sensitivity": 0.05,
    "balanced_accuracy": 0.03,
    "subgroup_malignant_auc": 0.05,
    # Ours: expected calibration error, which is better where it is smaller.
    "calibration_error": 0.02,
    "malignant_calibration_error": 0.02,
}
#: Ours: a confidence that is off by a tenth means nothing, whatever the active model's does.
WORST_CALIBRATION_ERROR: Final = 0.1
#: Subgroups with fewer malignant lesions say nothing of their own.
LEAST_MALIGNANT: Final = 30


class GateFigure(BaseModel):
    """One figure of both models.

    Attributes:
        name: A key of `MARGINS`; subgroups have their field and group behind it.
        candidate: On the gate set.
        active: On the gate set.
        difference: Candidate minus active, turned so that below 0 is worse.
        low: 5 % quantile of the difference over the draws.
        high: 95 % quantile.
        margin: The difference may be minus this.
        p_worse: Share of draws in which the candidate is not worse by more than the margin: small refuses.
        p_safe: Share of draws in which it is worse by the margin or more: small promotes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    candidate: float
    active: float
    difference: float
    low: float
    high: float
    margin: float
    p_worse: float
    p_safe: float


class GateDecision(BaseModel):
    """What the gate says, and everything it says it for.

    Attributes:
        verdict: "refuse", "promote", or "undecided": a person decides.
        reasons: Sentences, for people.
        figures: What was compared.
        specificity: Share of benign lesions below the threshold at which melanoma sensitivity is compared.
        images: Images of the gate set.
        lesions: Lesions of the gate set.
        malignant_lesions: Malignant ones among them.
        draws: Bootstrap draws.
        seed: Their seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["refuse", "promote", "undecided"]
    reasons: tuple[str, ...]
    figures: tuple[GateFigure, ...] = ()
    specificity: float | None = None
    images: int
    lesions: int
    malignant_lesions: int
    draws: int
    seed: int


class GateReport(BaseModel):
    """A decision, and what it was made on.

    Attributes:
        active: Digest of the model the candidate was compared with.
        gate_set: Digest of the gate set's images, lesions and diagnoses.
        uses: How often this set was used, this time included: each use makes passing by luck a little likelier.
        independent: Whether the gate set comes from elsewhere than what the candidate learned from. Otherwise labels
            that misled the candidate mislead its judge as well, and a person must look at a "promote".
        decision: None where the two could not be compared.
        problem: Why they could not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    active: str
    gate_set: str
    uses: int
    independent: bool
    decision: GateDecision | None
    problem: str | None = None

    @property
    def verdict(self) -> Literal["refuse", "promote", "undecided"]:
        """The decision's; "undecided" where there is none, and where it may not be believed by itself."""
        if self.decision is None or (self.decision.verdict == "promote" and not self.independent):
            return "undecided"
        return self.decision.verdict


def judge_candidate(candidate: Verdicts, active: Verdicts, *, draws: int = DRAWS, seed: int = 0) -> GateDecision:
    """Compare a candidate with the active model on the gate set.

    Lesions are drawn with replacement within their diagnosis, the same ones for both models.

    Args:
        candidate: Its verdicts on every image of the gate set.
        active: The active model's verdicts on the same images, in the same order.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        The decision.

    Raises:
        GateError: The verdicts are about different images, or the gate set has no malignant or no benign lesion.
    """
    if list(candidate.lesion_ids) != list(active.lesion_ids) or not np.array_equal(candidate.labels, active.labels):
        raise GateError("The gate compares two models on the same images; these verdicts are about different ones.")
    bootstrap = LesionBootstrap(candidate.lesion_ids, draws=draws, seed=seed, strata=candidate.labels)
    lesions = _Lesions.of(bootstrap, candidate.labels)
    if not 0 < lesions.malignant.sum() < bootstrap.lesions:
        raise GateError("The gate set needs malignant and benign lesions; it has only one kind.")
    described = {
        "images": len(candidate.labels),
        "lesions": bootstrap.lesions,
        "malignant_lesions": int(lesions.malignant.sum()),
        "draws": draws,
        "seed": seed,
    }
    if not np.isfinite(candidate.posteriors).all():
        reason = "The candidate's probabilities are not all numbers."
        return GateDecision(verdict="refuse", reasons=(reason,), **described)
    specificity = _specificity(active, bootstrap, lesions)
    figures = tuple(_figures(candidate, active, bootstrap, lesions, specificity))
    verdict, reasons = _decide(figures)
    return GateDecision(verdict=verdict, reasons=reasons, figures=figures, specificity=specificity, **described)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesions:
    malignant: NDArray[np.bool_]
    melanoma: NDArray[np.bool_]

    @classmethod
    def of(cls, bootstrap: LesionBootstrap, labels: NDArray[np.int64]) -> _Lesions:
        def mark(images: NDArray[np.bool_]) -> NDArray[np.bool_]:
            return np.bincount(bootstrap.lesion, images, minlength=bootstrap.lesions) > 0

        return cls(malignant=mark(np.isin(labels, MALIGNANT_INDEX)), melanoma=mark(labels == MELANOMA))


def _lesion_scores(verdicts: Verdicts, bootstrap: LesionBootstrap) -> NDArray[np.float64]:
    # A lesion is as suspicious as its most suspicious image.
    scores = np.full(bootstrap.lesions, -np.inf)
    np.maximum.at(scores, bootstrap.lesion, verdicts.malignant_scores)
    return scores


def _specificity(active: Verdicts, bootstrap: LesionBootstrap, lesions: _Lesions) -> float:
    benign = _lesion_scores(active, bootstrap)[~lesions.malignant]
    return float((benign < active.threshold).mean())


def _figures(
    candidate: Verdicts, active: Verdicts, bootstrap: LesionBootstrap, lesions: _Lesions, specificity: float
) -> Iterator[GateFigure]:
    def compare(name: str, measure: Callable[[Verdicts], _Measured], *, smaller: bool = False) -> GateFigure:
        margin = MARGINS[name.partition(",")[0]]
        return _compare(name, measure(candidate), measure(active), margin, smaller=smaller)

    yield compare("malignant_auc", partial(_area, bootstrap))
    if lesions.melanoma.any():
        yield compare("melanoma_sensitivity", partial(_sensitivity, bootstrap, lesions, specificity))
    yield compare("balanced_accuracy", partial(_balanced_accuracy, bootstrap))
    # The mean over the seven classes, and the malignant ones taken together.
    each = [[index] for index in range(len(CLASSES))]
    yield compare("calibration_error", partial(_calibration, bootstrap, each), smaller=True)
    yield compare("malignant_calibration_error", partial(_calibration, bootstrap, [MALIGNANT_INDEX]), smaller=True)
    for field, names in subgroup_names(candidate.patients).items():
        for group in sorted(set(names)):
            among = np.asarray(names) == group
            malignant = np.isin(candidate.labels, MALIGNANT_INDEX) & among
            if len(set(bootstrap.lesion[malignant])) >= LEAST_MALIGNANT and not malignant[among].all():
                yield compare(f"subgroup_malignant_auc, {field} {group}", partial(_area_among, bootstrap, among))


#: A figure on the data itself, and on each draw, `(draws,)`.
_Measured = tuple[float, NDArray[np.float64]]


def _area(bootstrap: LesionBootstrap, verdicts: Verdicts) -> _Measured:
    return _area_among(bootstrap, np.ones(len(verdicts.labels), bool), verdicts)


def _area_among(bootstrap: LesionBootstrap, among: NDArray[np.bool_], verdicts: Verdicts) -> _Measured:
    malignant = np.isin(verdicts.labels, MALIGNANT_INDEX)
    draws = bootstrap.area_under_curve(verdicts.malignant_scores, malignant, among)
    return float(bootstrap.once().area_under_curve(verdicts.malignant_scores, malignant, among)[0]), draws


def _sensitivity(bootstrap: LesionBootstrap, lesions: _Lesions, specificity: float, verdicts: Verdicts) -> _Measured:
    scores = _lesion_scores(verdicts, bootstrap)
    benign = np.flatnonzero(~lesions.malignant)
    benign = benign[np.argsort(scores[benign], kind="stable")]

    def measure(weights: NDArray[np.int16]) -> NDArray[np.float64]:
        below = np.cumsum(weights[:, benign], axis=1, dtype=np.int64)
        # Flagged is what lies above the last of the benign lesions that must stay below.
        last = np.argmax(below >= np.ceil(specificity * below[:, -1:]), axis=1)
        flagged = scores[None, :] > scores[benign[last]][:, None]
        melanomas = weights * lesions.melanoma
        found = (melanomas * flagged).sum(axis=1, dtype=np.float64)
        every = melanomas.sum(axis=1, dtype=np.float64)
        return np.divide(found, every, out=np.full(len(every), np.nan), where=every > 0)

    return float(measure(bootstrap.once().weights)[0]), measure(bootstrap.weights)


def _balanced_accuracy(bootstrap: LesionBootstrap, verdicts: Verdicts) -> _Measured:
    matrix, drawn = draw_confusion(bootstrap, verdicts.labels, verdicts.diagnoses)
    return float(Outcomes.of(matrix).balanced_accuracy()), Outcomes.of(drawn).balanced_accuracy()


def _calibration(bootstrap: LesionBootstrap, groups: Sequence[Sequence[int]], verdicts: Verdicts) -> _Measured:
    images = bootstrap.sum(np.ones((len(verdicts.labels), 1)))[:, 0]
    found = []
    for group in groups:
        confidences = verdicts.posteriors[:, group].sum(axis=1)
        gaps = calibration_gaps(confidences, np.isin(verdicts.labels, group))
        whole = float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))
        found.append((whole, np.abs(bootstrap.sum(gaps)).sum(axis=1) / images))
    return float(np.mean([whole for whole, _ in found])), np.mean([draws for _, draws in found], axis=0)


def _compare(name: str, candidate: _Measured, active: _Measured, margin: float, *, smaller: bool) -> GateFigure:
    sign = -1.0 if smaller else 1.0
    draws = sign * (candidate[1] - active[1])
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, (LEVEL, 1 - LEVEL))
    # One more in numerator and denominator: a finite number of draws never makes a p of 0 (Davison & Hinkley 1997).
    return GateFigure(
        name=name,
        candidate=candidate[0],
        active=active[0],
        difference=sign * (candidate[0] - active[0]),
        low=float(low),
        high=float(high),
        margin=margin,
        p_worse=float((1 + np.count_nonzero(draws >= -margin)) / (1 + len(draws))),
        p_safe=float((1 + np.count_nonzero(draws <= -margin)) / (1 + len(draws))),
    )


def _decide(figures: Sequence[GateFigure]) -> tuple[Literal["refuse", "promote", "undecided"], tuple[str, ...]]:
    groups = [figure for figure in figures if figure.name.startswith("subgroup")]
    worse = [figure for figure in figures if figure not in groups and figure.p_worse <= LEVEL]
    worse += _holm(groups)
    reasons = [
        f"{figure.name}: {figure.candidate:.3f} against {figure.active:.3f}, worse by more than {figure.margin:g} "
        f"(difference {figure.difference:+.3f}, 90 % interval {figure.low:+.3f} to {figure.high:+.3f})."
        for figure in worse
    ]
    reasons += [
        f"{figure.name}: {figure.candidate:.3f} is beyond {WORST_CALIBRATION_ERROR:g}."
        for figure in figures
        if "calibration" in figure.name and figure.candidate > WORST_CALIBRATION_ERROR
    ]
    if reasons:
        return "refuse", tuple(reasons)
    open_questions = [figure for figure in figures if figure.p_safe > LEVEL]
    if not open_questions:
        return "promote", ("No figure can be worse than the active model's by more than its margin.",)
    return "undecided", tuple(
        f"{figure.name}: {figure.candidate:.3f} against {figure.active:.3f}; the 90 % interval of the difference, "
        f"{figure.low:+.3f} to {figure.high:+.3f}, does not exclude -{figure.margin:g}."
        for figure in open_questions
    )


def _holm(groups: Sequence[GateFigure]) -> list[GateFigure]:
    """Choose the groups that are worse with all of them in mind: smallest p first, as long as it holds (Holm 1979)."""
    chosen: list[GateFigure] = []
    for number, figure in enumerate(sorted(groups, key=lambda one: one.p_worse)):
        if figure.p_worse > LEVEL / (len(groups) - number):
            break
        chosen.append(figure)
    return chosen
