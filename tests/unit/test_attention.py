"""The soft-attention layer does what its formula says."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from model.attention import AttentionForm, SoftAttention
from model.labels import CLASSES
from model.metadata import WIDTH
from model.network import NetworkConfig, build_network

FORMS: tuple[AttentionForm, ...] = ("corrected", "as-published", "as-coded")


@pytest.mark.parametrize("form", FORMS)
def test_the_map_sums_to_the_number_of_heads_and_weighs_the_features(form: AttentionForm) -> None:
    layer = SoftAttention(heads=16, form=form)
    features = np.random.default_rng(0).normal(0, 1, (2, 5, 7, 8)).astype(np.float32)

    attended, attention = layer(features)

    assert np.asarray(attention).shape == (2, 5, 7)
    assert np.asarray(attention).sum(axis=(1, 2)) == pytest.approx([16, 16], rel=1e-5)
    gamma = 1.0 if layer.gamma is None else float(np.asarray(layer.gamma))
    assert np.asarray(attended) == pytest.approx(gamma * np.asarray(attention)[..., None] * features, rel=1e-5)


@pytest.mark.parametrize(("form", "gammas"), [("corrected", 1), ("as-published", 1), ("as-coded", 0)])
def test_the_layer_has_the_published_number_of_parameters(form: AttentionForm, gammas: int) -> None:
    layer = SoftAttention(heads=16, form=form)
    layer.build((None, 7, 7, 960))

    assert layer.count_params() == 9 * 960 * 16 + 16 + gammas


@pytest.mark.parametrize("form", FORMS)
def test_on_a_single_position_attention_is_the_constant_16(form: AttentionForm) -> None:
    _, attention = SoftAttention(heads=16, form=form)(np.ones((3, 1, 1, 8), np.float32))

    assert np.asarray(attention) == pytest.approx(np.full((3, 1, 1), 16.0))


def test_the_published_form_gives_the_numbers_of_the_corrected_one_on_the_same_kernel() -> None:
    # Given both forms with one kernel, bias and gamma
    generator = np.random.default_rng(0)
    features = generator.normal(0, 1, (2, 7, 5, 12)).astype(np.float32)
    corrected, published = SoftAttention(form="corrected"), SoftAttention(form="as-published")
    corrected(features), published(features)
    kernel, bias, gamma = generator.normal(0, 1, (3, 3, 12, 16)), generator.normal(0, 1, 16), np.array(0.7)
    corrected.set_weights([gamma, kernel, bias])
    published.set_weights([kernel[:, :, :, None], bias, gamma])

    # If both attend to the same features, then the answers are the same
    for mine, other in zip(published(features), corrected(features), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [5, 12, 40])
@pytest.mark.parametrize("form", ["as-published", "as-coded"])
def test_the_papers_forms_score_as_its_three_dimensional_convolutions(form: AttentionForm, depth: int) -> None:
    # Given a form, and the Conv3D that the paper prints or its notebooks build, with the same kernel
    generator = np.random.default_rng(0)
    features = generator.normal(0, 1, (2, 7, 5, depth)).astype(np.float32)
    layer = SoftAttention(form=form)
    layer(features)
    kernel = generator.normal(0, 1, layer.kernel.shape).astype(np.float32)
    layer.kernel.assign(kernel)

    # If both score the same features, padded as "SAME" is documented: with a stride of d, not at all along the channels
    padding = [(0, 0), *(((size - 1) // 2, size // 2) for size in kernel.shape[:2]), (0, 0), (0, 0)]
    padded = np.pad(features[..., None], padding)
    # By its definition: TensorFlow 2.21's own answers with memory it never wrote where a stride passes a kernel's end.
    windows = np.lib.stride_tricks.sliding_window_view(padded[..., : kernel.shape[2], 0], kernel.shape[:2], (1, 2))
    expected = np.einsum("nijcab,abcK->nijK", windows, kernel[:, :, :, 0])
    if form == "as-coded":
        expected = np.maximum(expected, 0)

    # Then the scores are the same
    np.testing.assert_allclose(layer._score(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "seen"), [("corrected", 12), ("as-published", 12), ("as-coded", 3)])
def test_the_notebooks_form_sees_three_channels_and_the_others_all(form: AttentionForm, seen: int) -> None:
    features = tf.constant(np.random.default_rng(0).normal(0, 1, (2, 7, 7, 12)).astype(np.float32))
    layer = SoftAttention(form=form)

    with tf.GradientTape() as tape:
        tape.watch(features)
        _, attention = layer(features)
        # The sum of the map is K whatever the features are, so a weighted one.
        asked = tf.reduce_sum(attention * np.arange(49, dtype=np.float32).reshape(7, 7))
    by_channel = np.abs(tape.gradient(asked, features)).max(axis=(0, 1, 2))

    assert np.flatnonzero(by_channel).tolist() == list(range(seen))


def test_most_weights_of_the_notebooks_form_are_dead() -> None:
    features = np.random.default_rng(0).normal(0, 1, (1, 7, 7, 960)).astype(np.float32)
    layer = SoftAttention(form="as-coded")
    layer(features)

    with tf.GradientTape() as tape:
        _, attention = layer(features)
        asked = tf.reduce_sum(attention * np.arange(49, dtype=np.float32).reshape(7, 7))
    gradient = np.asarray(tape.gradient(asked, layer.kernel.value))

    # 13 of the 960 rows of the kernel ever meet a map of 7 rows.
    rows = np.flatnonzero(np.abs(gradient).max(axis=(1, 2, 3, 4)))
    assert len(rows) == 13
    assert 1 - len(rows) / 960 == pytest.approx(0.986, abs=5e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_is_rebuilt_from_its_description(form: AttentionForm) -> None:
    layer = SoftAttention(heads=8, form=form)

    copied = SoftAttention.from_config(layer.get_config())

    assert (copied.heads, copied.form) == (8, form)


@pytest.mark.parametrize("attention", [*FORMS, "none"])
@pytest.mark.parametrize("head", ["pooled", "flatten"])
def test_the_network_takes_images_and_metadata_and_gives_logits_features_and_a_map(attention: str, head: str) -> None:
    described = {"backbone": "MobileNet", "input_size": 64, "attention": attention, "head": head}
    network = build_network(NetworkConfig.model_validate(described))

    outputs = network([np.zeros((2, 64, 64, 3), np.float32), np.zeros((2, WIDTH), np.float32)])

    maps = 1 if attention == "none" else 2
    assert outputs["logits"].shape == (2, len(CLASSES))
    assert outputs["features"].shape == (2, maps * 1024)
    assert ("attention" in outputs) is (attention != "none")
    if attention != "none":
        assert outputs["attention"].shape == (2, 2, 2)
