"""The model that comes with the program is whole, small, and says what it is."""

from __future__ import annotations

from model.artifact import CARD, WEIGHTS, read_manifest, shipped_artifact
from model.card import model_card
from model.classifier import Classifier
from model.report import Evaluation

#: The first bar for the shipped model, on held-out lesions.
LEAST_BALANCED_ACCURACY = 0.78
MOST_BYTES = 15_000_000


def test_it_loads_repeats_its_golden_prediction_and_has_a_card() -> None:
    folder = shipped_artifact()
    manifest = read_manifest(folder)

    assert Classifier.load(folder).digest == manifest.digest
    assert (folder / CARD).read_text(encoding="utf-8") == model_card(manifest)


def test_it_is_small_and_stayed_away_from_the_gate_set() -> None:
    folder = shipped_artifact()
    manifest = read_manifest(folder)

    assert (folder / WEIGHTS).stat().st_size < MOST_BYTES
    assert manifest.training.gate_set_excluded
    found = Evaluation.model_validate(manifest.metrics)
    assert found.balanced_accuracy.value is not None
    assert found.balanced_accuracy.value >= LEAST_BALANCED_ACCURACY
    assert manifest.operating_point.sensitivity >= 0.95
    assert manifest.operating_point.melanoma_sensitivity >= 0.95
    assert manifest.referral.referred <= 0.05
    assert max(manifest.referral.referred_in_class.values()) <= 0.15
