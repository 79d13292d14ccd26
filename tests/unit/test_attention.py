"""The soft-attention layer does what its formula says."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from model.attention import SoftAttention
from model.labels import CLASSES
from model.metadata import WIDTH
from model.network import NetworkConfig, build_network


def test_the_map_sums_to_the_number_of_heads_and_weighs_the_features() -> None:
    layer = SoftAttention(heads=16)
    features = np.random.default_rng(0).normal(0, 1, (2, 5, 7, 8)).astype(np.float32)

    attended, attention = layer(features)

    assert np.asarray(attention).shape == (2, 5, 7)
    assert np.asarray(attention).sum(axis=(1, 2)) == pytest.approx([16, 16], rel=1e-5)
    gamma = float(np.asarray(layer.gamma))
    assert np.asarray(attended) == pytest.approx(gamma * np.asarray(attention)[..., None] * features, rel=1e-5)


def test_the_layer_has_the_published_number_of_parameters() -> None:
    layer = SoftAttention(heads=16)
    layer.build((None, 7, 7, 960))

    assert layer.count_params() == 9 * 960 * 16 + 16 + 1


def test_on_a_single_position_attention_is_the_constant_16() -> None:
    _, attention = SoftAttention(heads=16)(np.ones((3, 1, 1, 8), np.float32))

    assert np.asarray(attention) == pytest.approx(np.full((3, 1, 1), 16.0))


@pytest.mark.parametrize("backbone", ["MobileNet", "MobileNetV2"])
def test_the_network_takes_images_and_metadata_and_gives_logits_features_and_a_map(backbone: str) -> None:
    network = build_network(NetworkConfig.model_validate({"backbone": backbone, "input_size": 64}))

    outputs = network([np.zeros((2, 64, 64, 3), np.float32), np.zeros((2, WIDTH), np.float32)])

    assert outputs["logits"].shape == (2, len(CLASSES))
    assert outputs["attention"].shape == (2, 2, 2)
    assert outputs["features"].shape[0] == 2


def test_metadata_reaches_the_logits_only_where_the_network_has_the_branch() -> None:
    image = np.zeros((1, 32, 32, 3), np.float32)
    one, two = np.zeros((1, WIDTH), np.float32), np.ones((1, WIDTH), np.float32)

    for branch, same in (("small", False), ("none", True)):
        keras.utils.set_random_seed(0)
        network = build_network(NetworkConfig.model_validate({"metadata": branch, "input_size": 32}))
        first, second = (np.asarray(network([image, metadata])["logits"]) for metadata in (one, two))
        assert np.array_equal(first, second) is same
