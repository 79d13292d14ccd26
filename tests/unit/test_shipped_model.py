"""The model that comes with the program is whole, small, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.artifact import CARD, WEIGHTS, read_manifest, shipped_artifact
from model.calibration import MAX_REFERRED, MAX_REFERRED_IN_CLASS
from model.card import model_card
from model.classifier import Classifier
from model.dataset import digest_data, read_labels
from model.labels import CLASSES
from model.report import Evaluation
from model.splits import in_gate_set

HAM10000 = Path(__file__).parents[2].parent / "shared" / "ham10000"

#: The first bar for the shipped model, on held-out lesions.
LEAST_BALANCED_ACCURACY = 0.78
MOST_BYTES = 15_000_000


def test_it_loads_repeats_its_golden_prediction_and_has_a_card() -> None:
    folder = shipped_artifact()
    manifest = read_manifest(folder)

    assert Classifier.load(folder).digest == manifest.digest
    assert (folder / CARD).read_text(encoding="utf-8") == model_card(manifest)


def test_it_is_small_and_good_enough_on_lesions_that_its_networks_and_thresholds_were_not_fitted_to() -> None:
    folder = shipped_artifact()
    found = Evaluation.model_validate(read_manifest(folder).metrics)

    assert (folder / WEIGHTS).stat().st_size < MOST_BYTES
    assert found.balanced_accuracy.value is not None
    assert found.balanced_accuracy.value >= LEAST_BALANCED_ACCURACY
    assert found.referral.referred.value is not None
    assert found.referral.referred.value <= MAX_REFERRED
    assert set(found.referral.by_class) == set(CLASSES)
    assert all(share is not None and share <= MAX_REFERRED_IN_CLASS for share in found.referral.by_class.values())


@pytest.mark.shared
def test_it_learned_from_ham10000_without_the_gate_set() -> None:
    if not HAM10000.is_dir():
        pytest.skip("HAM10000 is not beside the checkout (../shared/ham10000)")
    rows = read_labels(HAM10000)

    learned = [row for row in rows if not in_gate_set(row.lesion_id)]

    assert 0 < len(learned) < len(rows)
    assert read_manifest(shipped_artifact()).training.data_digest == digest_data(learned)
