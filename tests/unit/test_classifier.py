"""What a loaded model says is what its network and its manifest say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from model.artifact import shipped_artifact
from model.build import BuiltModel
from model.calibration import posterior
from model.card import model_card
from model.classifier import GOLDEN_TOLERANCE, LOW_CONFIDENCE, UNFAMILIAR_IMAGE, Classifier, Prediction, golden_input
from model.device import CPU_BATCH_SIZE
from model.familiarity import measure_distance
from model.labels import CLASSES
from model.metadata import PatientMetadata, encode_metadata
from model.network import run_network
from model.package import MAX_ROUNDING


@pytest.fixture(scope="module")
def classifier(artifact: Path) -> Classifier:
    return Classifier.load(artifact)


@pytest.fixture(scope="module")
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(5).integers(0, 256, (9, 64, 64, 3), np.uint8)


PATIENTS = [PatientMetadata(age=10.0 * number, sex="female", localization="back") for number in range(9)]


def test_the_frozen_graph_agrees_with_the_network_it_was_made_from(
    classifier: Classifier, built_model: BuiltModel, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    # Given the network's own answer
    network_said = run_network(built_model.network, images, encode_metadata(PATIENTS))
    expected = posterior(network_said["logits"], built_model.prior, built_model.temperature)

    # Then the artifact's answer is the same; its weights were rounded before, so the engine alone is compared
    said = classifier.classify(images, PATIENTS)
    assert np.abs(np.array([prediction.probabilities for prediction in said]) - expected).max() < 1e-4
    distances = measure_distance(built_model.spaces, network_said)
    assert [prediction.distance for prediction in said] == pytest.approx(distances, rel=1e-3)
    assert MAX_ROUNDING <= 1e-2


def test_an_image_scores_the_same_alone_and_in_any_batch(
    classifier: Classifier, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    together = classifier.classify(images, PATIENTS)
    alone = [classifier.classify(images[row : row + 1], [patient])[0] for row, patient in enumerate(PATIENTS)]

    for one, other in zip(alone, together, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_lighter_precision_is_taken_where_it_gives_the_same_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the shipped model, whose verdicts are not near ties as those of drawn weights are, in half the bits, and a
    # tolerance for how a CPU rounds those: it may miss the usual one by a hair
    model, tolerance = shipped_artifact(), 4 * GOLDEN_TOLERANCE
    monkeypatch.setattr("model.classifier.GOLDEN_TOLERANCE", tolerance)
    exact, lighter = Classifier.load(model), Classifier.load(model, precision="float16")

    # Then it computes so, its results say so, and its probabilities are those of float32 but for rounding
    assert (lighter.precision, lighter.engine_name) == ("float16", "tensorflow-frozen-float16")
    waves, _ = golden_input(0, exact.input_size, exact.metadata_encoding)
    patients = PATIENTS[: len(waves)]
    pairs = zip(exact.classify(waves, patients), lighter.classify(waves, patients), strict=True)
    gaps = [np.abs(np.subtract(one.probabilities, other.probabilities)).max() for one, other in pairs]
    assert 0 < max(gaps) < tolerance
    # And networks that are built later compute in float32 again
    assert keras.config.dtype_policy().name == "float32"

    # If its verdicts differ by more than they may, then float32 is what computes
    monkeypatch.setattr("model.classifier.GOLDEN_TOLERANCE", 1e-9)
    monkeypatch.setattr("model.classifier._check_golden", lambda *_: None)
    refused = Classifier.load(model, precision="float16")
    assert (refused.precision, refused.engine_name) == ("float32", "tensorflow-frozen")


def test_the_batch_size_is_the_one_that_is_asked_for(artifact: Path, classifier: Classifier) -> None:
    assert Classifier.load(artifact, batch_size=3).batch_size == 3
    assert (classifier.device, classifier.batch_size) == ("cpu", CPU_BATCH_SIZE)


def test_every_prediction_is_a_distribution_with_a_diagnosis_by_the_prior(
    classifier: Classifier, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    for prediction in classifier.classify(images, PATIENTS):
        probabilities = np.array(prediction.probabilities)
        assert probabilities.sum() == pytest.approx(1, abs=1e-9)
        chosen = CLASSES[int(np.argmax(probabilities / np.array(classifier.manifest.prior)))]
        assert prediction.diagnosis == chosen
        assert prediction.confidence == probabilities[CLASSES.index(chosen)]
        assert prediction.malignant_score == pytest.approx(probabilities[[0, 1, 4]].sum())
        assert prediction.referred is (prediction.refer_reason is not None)
        assert prediction.refer_reason in {None, LOW_CONFIDENCE, UNFAMILIAR_IMAGE}


class Answers:
    """An engine that gives one stated answer."""

    name, device, precision = "stated", "cpu", "float32"

    def __init__(self, posterior: list[float], distance: float) -> None:
        self.answer = np.array([posterior], np.float32), np.array([distance], np.float32), None

    def run(self, _images: object, _metadata: object) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], None]:
        return self.answer


def judge(classifier: Classifier, posterior: list[float], distance: float = 0.0) -> Prediction:
    stated = Classifier(classifier.manifest, Answers(posterior, distance))  # type: ignore[arg-type]
    return stated.classify(np.zeros((1, 64, 64, 3), np.uint8), [PatientMetadata()])[0]


def test_a_rare_diagnosis_may_win_though_its_posterior_is_not_the_highest(classifier: Classifier) -> None:
    # Given a prior of .02 for df and .64 for nv, and a posterior that raises df tenfold
    prediction = judge(classifier, [0.04, 0.06, 0.1, 0.2, 0.08, 0.5, 0.02])

    # Then df is the diagnosis, and its confidence is the posterior as it stands
    assert prediction.diagnosis == "df"
    assert prediction.confidence == pytest.approx(0.2)
    assert prediction.malignant_score == pytest.approx(0.18)


def test_an_image_far_from_the_training_data_is_referred_however_sure_the_network_is(classifier: Classifier) -> None:
    sure = [0.001, 0.001, 0.001, 0.001, 0.001, 0.994, 0.001]
    limit = classifier.manifest.referral.max_distance

    near, far = judge(classifier, sure, limit * 0.99), judge(classifier, sure, limit * 1.01)

    assert (near.referred, near.refer_reason) == (False, None)
    assert (far.referred, far.refer_reason) == (True, UNFAMILIAR_IMAGE)


def test_an_undecided_answer_is_referred(classifier: Classifier) -> None:
    # Given a posterior that is the prior: the image told nothing
    prediction = judge(classifier, list(classifier.manifest.prior))

    assert (prediction.referred, prediction.refer_reason) == (True, LOW_CONFIDENCE)


def test_an_image_is_prioritised_from_the_operating_point_on(classifier: Classifier) -> None:
    threshold = classifier.manifest.operating_point.threshold

    for melanoma, prioritised in ((threshold + 1e-3, True), (threshold - 1e-3, False)):
        rest = (1 - melanoma) / 4
        assert judge(classifier, [0, 0, rest, rest, melanoma, rest, rest]).prioritised is prioritised


def test_the_model_card_states_the_figures_and_that_it_is_no_medical_device(classifier: Classifier) -> None:
    card = model_card(classifier.manifest)

    assert "Not a medical device" in card
    assert classifier.digest in card
    assert f"{classifier.manifest.operating_point.threshold:.4f}" in card
