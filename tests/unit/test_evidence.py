"""Evidence says what each place of an image adds to a logit: all places together make the logit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.engine import FrozenGraph
from model.evidence import choose_evidence, with_evidence
from model.joining import split_network
from model.metadata import PatientMetadata, encode_metadata
from model.network import NetworkConfig, build_network
from tests.random_model import draw_model

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
PIXELS = IMAGES.astype(np.float32) / 127.5 - 1
METADATA = encode_metadata([PatientMetadata(age=50), PatientMetadata(sex="female"), PatientMetadata()])


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"attention": "none"},
        {"beside": [{"backbone": "MobileNetV2", "input_size": 64}]},
        {"beside": [{"backbone": "MobileNet", "input_size": 32}]},
    ],
    ids=["attention", "no attention", "two networks", "two sizes"],
)
def test_the_evidence_of_all_places_is_the_logit_but_for_bias_and_metadata(described: dict[str, Any]) -> None:
    network = draw_model(NetworkConfig(backbone="MobileNet", input_size=64, **described)).network

    said = with_evidence(network)([PIXELS, METADATA], training=False)

    evidence = np.asarray(said["evidence"])
    assert evidence.shape == (3, 2, 2, 7)
    shares = []
    for one in split_network(network):
        classifier = one.get_layer("classifier")
        encoded = np.asarray(one.get_layer("metadata_dense")(METADATA))
        shares.append(encoded @ np.asarray(classifier.kernel)[-encoded.shape[1] :] + np.asarray(classifier.bias))
    assert evidence.sum(axis=(1, 2)) == pytest.approx(np.asarray(said["logits"]) - np.mean(shares, axis=0), abs=1e-4)
    # And places differ
    assert np.ptp(evidence, axis=(1, 2)).min() > 1e-3
    for name in ("logits", "features"):
        np.testing.assert_array_equal(said[name], network([PIXELS, METADATA], training=False)[name])


def test_an_engine_returns_the_evidence_for_the_diagnosis() -> None:
    built = draw_model(NetworkConfig(backbone="MobileNet", input_size=64))
    engine = FrozenGraph(
        built.network, input_size=64, prior=built.prior, temperature=built.temperature, spaces=built.spaces
    )

    posteriors, _, found = engine.run(IMAGES, METADATA)

    every = np.asarray(with_evidence(built.network)([PIXELS, METADATA], training=False)["evidence"])
    diagnoses = np.argmax(posteriors / built.prior, axis=1)
    assert found is not None
    assert found == pytest.approx(every[np.arange(3), :, :, diagnoses], abs=1e-5)


@pytest.mark.parametrize("described", [{"head": "flatten"}, {"hidden": 8}])
def test_a_head_that_does_not_add_up_places_has_no_evidence(described: dict[str, Any]) -> None:
    network = build_network(NetworkConfig(backbone="MobileNet", input_size=64, **described))

    assert with_evidence(network) is network
    assert choose_evidence(network([PIXELS, METADATA], training=False)) == {}
