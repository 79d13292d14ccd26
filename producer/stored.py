"""Stored figures: what ledger and artifact state of a model, by whatever version, or None where they do not."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from db.tables import CLASSES
from worker.shelf import Shelf

#: A manifest or card is some kilobytes; a larger one is not ours.
_MAX_BYTES: Final = 1_000_000

_Share = Annotated[float, Field(ge=0, le=1)]
_Row = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=len(CLASSES), max_length=len(CLASSES))]
_Points = Annotated[tuple[tuple[_Share, _Share], ...], Field(max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Figure(_Part):
    """A figure with its 95 % interval; undefined where there is nothing to measure it on."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def tell(self, form: str = ".3f") -> str:
        """Write "value (low to high)".

        Args:
            form: How each number is written.

        Returns:
            Text.
        """
        if self.value is None:
            return "undefined"
        known = self.low is not None and self.high is not None
        return f"{self.value:{form}}" + (f" ({self.low:{form}} to {self.high:{form}})" if known else "")


class ClassFigures(_Part):
    """One class against the rest."""

    true_positives: int
    false_negatives: int
    sensitivity: Figure
    specificity: Figure
    precision: Figure
    f1: Figure
    auc: Figure


class Subgroup(_Part):
    """Figures of one group of patients."""

    field: str
    group: str
    images: int
    lesions: int
    malignant_lesions: int
    balanced_accuracy: Figure
    malignant_auc: Figure
    sensitivity: Figure
    specificity: Figure
    referred: Figure


class StatedPoint(_Part):
    """The operating point as the ledger keeps it."""

    threshold: float
    sensitivity: float
    specificity: float
    sensitivity_interval: tuple[float, float] | None = None
    melanoma_sensitivity: float | None = None
    prevalence: float | None = None
    lesions: int | None = None


class JudgedPoint(_Part):
    """The operating point as the artifact's manifest judges it, by lesion; see `model.report.OperatingFigures`."""

    threshold: Figure
    sensitivity: Figure
    sensitivity_by_score: Figure
    melanoma_sensitivity: Figure
    melanoma_sensitivity_by_score: Figure
    specificity: Figure
    specificity_by_score: Figure
    histology_sensitivity: Figure
    histology_specificity: Figure
    histology_lesions: int
    prevalence: float
    lesions: int


class Referral(_Part):
    """Shares of images that go to a person whatever their score."""

    referred: Figure
    unfamiliar: float
    low_confidence: float
    by_class: dict[str, float | None]


class ReliabilityBin(_Part):
    """Images of about one confidence."""

    images: int
    confidence: _Share
    share: _Share
    low: _Share
    high: _Share


class Curves(_Part):
    """Points to draw curves through; see `model.report.Curves`."""

    roc: dict[str, _Points]
    flagged: tuple[_Share, _Share] | None = None
    reliability_before: dict[str, tuple[ReliabilityBin, ...]]
    reliability: dict[str, tuple[ReliabilityBin, ...]]


class StoredEvaluation(_Part):
    """What is stored of an evaluation; what is missing or of another form is None, and hides nothing else."""

    images: int | None = None
    lesions: int | None = None
    draws: int | None = None
    balanced_accuracy: Figure | None = None
    paper_balanced_accuracy: Figure | None = None
    balanced_accuracy_without_metadata: Figure | None = None
    metadata_gain: Figure | None = None
    accuracy: Figure | None = None
    accuracy_of_posterior: Figure | None = None
    precision: Figure | None = None
    f1: Figure | None = None
    specificity: Figure | None = None
    macro_auc: Figure | None = None
    malignant_auc: Figure | None = None
    classes: dict[str, ClassFigures] | None = None
    #: `[true][diagnosed]` in the order of `CLASSES`.
    confusion: Annotated[tuple[_Row, ...], Field(min_length=len(CLASSES), max_length=len(CLASSES))] | None = None
    calibration_before: dict[str, Figure] | None = None
    calibration: dict[str, Figure] | None = None
    operating_point: StatedPoint | None = None
    referral: Referral | None = None
    subgroups: tuple[Subgroup, ...] | None = None
    curves: Curves | None = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _leave_out(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            return None

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Self:
        """Read what the ledger stores.

        Args:
            metrics: Of a model.
        """
        return cls.model_validate(dict(metrics))


class GateFigure(_Part):
    """One figure of a candidate and the model that was active."""

    name: str
    candidate: float
    active: float
    difference: float
    low: float
    high: float
    margin: float


class GateDecision(_Part):
    """What the gate said, and for what."""

    verdict: Literal["refuse", "promote", "undecided"]
    reasons: tuple[str, ...] = ()
    figures: tuple[GateFigure, ...] = ()
    images: int
    lesions: int
    malignant_lesions: int


class Gate(_Part):
    """A decision, and what it was made on; see `model.gate.GateReport`."""

    active: str
    gate_set: str
    uses: int
    independent: bool
    decision: GateDecision | None
    problem: str | None = None

    @classmethod
    def of(cls, gate: Mapping[str, Any] | None) -> Self | None:
        """Read what the ledger stores; None where that is nothing, or nothing that this program knows.

        Args:
            gate: Of a training run.
        """
        try:
            return None if gate is None else cls.model_validate(dict(gate))
        except ValidationError:
            return None


def gate_verdict(gate: Mapping[str, Any]) -> str:
    """Say how a gate ended: no "promote" is believed whose gate set was part of the candidate's own data.

    Args:
        gate: As the ledger keeps it.

    Returns:
        "refuse", "promote" or "undecided".
    """
    said = (gate.get("decision") or {}).get("verdict", "undecided")
    return "undecided" if said == "promote" and not gate.get("independent") else str(said)


def read_judged_point(shelf: Shelf, digest: str) -> JudgedPoint | None:
    """Read an operating point's figures from a model's manifest, which must be the one that its digest names.

    Args:
        shelf: Of the artifact store.
        digest: The model.

    Returns:
        The figures, or None where the store has no such manifest, or it states none.
    """
    try:
        manifest = json.loads(_read(shelf, digest, "manifest.json") or b"null")
        # As `model.artifact.Manifest.digest` writes it.
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if hashlib.sha256(canonical.encode()).hexdigest() != digest:
            return None
        return JudgedPoint.model_validate(manifest["metrics"]["operating_point"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_card(shelf: Shelf, digest: str) -> str | None:
    """Read a model's card.

    Args:
        shelf: Of the artifact store.
        digest: The model.

    Returns:
        Markdown, or None where the store has none.
    """
    data = _read(shelf, digest, "MODEL_CARD.md")
    return None if data is None else data.decode("utf-8", "replace")


def _read(shelf: Shelf, digest: str, name: str) -> bytes | None:
    data = shelf.read(f"models/{digest}/{name}")
    return None if data is None or len(data) > _MAX_BYTES else data
