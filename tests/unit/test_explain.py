"""Maps show what a network computed, and lie where the image shows it."""

from __future__ import annotations

import io
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from model.artifact import NetworkPart
from model.classifier import Classifier
from model.errors import RejectedImage
from model.explain import Explainer, decode_shown, explain_image, weigh_features
from model.images import encode_image, measure_image
from model.joining import fit_images, split_network
from model.labels import CLASSES
from model.metadata import PatientMetadata
from model.network import BesideConfig, NetworkConfig, build_network
from model.pictures import spread_map

PATIENTS = [PatientMetadata(age=50), PatientMetadata()]


@pytest.fixture(scope="module")
def explainer(artifact: Path) -> Explainer:
    return Explainer.load(artifact)


@pytest.fixture(scope="module")
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, (2, 64, 64, 3), np.uint8)


def test_the_diagnosis_explained_is_the_one_that_is_given(
    explainer: Explainer, artifact: Path, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    maps = explainer.explain(images, PATIENTS)

    said = Classifier.load(artifact).classify(images, PATIENTS)
    assert [CLASSES[index] for index in maps.diagnoses] == [one.diagnosis for one in said]


def test_the_attention_is_the_networks_own_and_each_images_map_is_its_own(
    explainer: Explainer, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    together = explainer.explain(images, PATIENTS)
    (alone,) = (explainer.explain(images[1:], PATIENTS[1:]),)

    assert together.attention is not None
    assert alone.attention is not None
    assert together.attention.sum(axis=(1, 2)) == pytest.approx([16, 16], rel=1e-4)
    assert together.attention[1] == pytest.approx(alone.attention[0], rel=1e-4, abs=1e-6)
    assert together.grad_cam[1] == pytest.approx(alone.grad_cam[0], rel=1e-4, abs=1e-6)
    assert together.grad_cam.shape == together.attention.shape


def test_grad_cam_weighs_each_channel_by_its_mean_gradient_and_keeps_what_speaks_for_the_class() -> None:
    # Given a channel that speaks for the class in one place, one that speaks against it in another, and a second image
    # of which neither speaks
    features = np.zeros((2, 2, 2, 2), np.float32)
    features[:, 0, 0, 0], features[:, 1, 1, 1] = 3.0, 5.0
    gradient = np.zeros((2, 2, 2, 2), np.float32)
    gradient[0, ..., 0] = [[4.0, 0.0], [0.0, 0.0]]
    gradient[0, ..., 1] = -2.0

    # Then the first is marked by its mean gradient times its value, and nothing else is
    marked, unmarked = np.asarray(weigh_features(features, gradient)).tolist()
    assert marked == [[3.0, 0.0], [0.0, 0.0]]
    assert unmarked == [[0.0, 0.0], [0.0, 0.0]]


def test_grad_cam_agrees_with_the_change_of_the_logit(built_network: Explainer) -> None:
    # Given one network, or several, of which the logit is linear in the pooled features, and so in the last map
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    maps = built_network.explain(image, PATIENTS[:1])

    # Then the map is the ReLU of the class's kernel applied to each place, over the number of places and networks
    assert maps.attention is None
    networks = built_network._models
    pixels = image.astype(np.float32) / 127.5 - 1
    expected = np.zeros(maps.grad_cam[0].shape)
    for network in networks:
        metadata = np.zeros((1, network.inputs[1].shape[1]), np.float32)
        said = network(fit_images(network, [keras.ops.convert_to_tensor(one) for one in (pixels, metadata)]))
        feature_map = np.asarray(said["feature_map"])
        kernel = np.asarray(network.get_layer("classifier").kernel)[: feature_map.shape[-1], maps.diagnoses[0]]
        # Features are positive where they are not 0, and the ReLU behind the pooling lets no other pass.
        alive = feature_map.mean(axis=(1, 2))[0] > 0
        speaks = np.maximum((feature_map[0] * alive) @ kernel, 0)
        # What the one place of a small image says, each of four says a quarter of.
        expected += np.broadcast_to(speaks, expected.shape) / expected.size / len(networks)
    assert maps.grad_cam[0] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert expected.max() > 0


@pytest.fixture(scope="module", params=[(), (("MobileNetV2", 64),), (("MobileNet", 32), ("MobileNetV2", 64))])
def built_network(request: pytest.FixtureRequest) -> Explainer:
    beside = tuple(BesideConfig(backbone=name, input_size=size) for name, size in request.param)
    config = NetworkConfig(backbone="MobileNet", beside=beside, attention="none", metadata="none", input_size=64)
    network = build_network(config)
    # Random kernels leave next to nothing of an image: a network that says something.
    for one in split_network(network):
        for layer in one.get_layer("backbone").layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                gamma, beta, mean, variance = layer.get_weights()
                layer.set_weights([gamma, beta + 0.5, mean, variance])
    return Explainer(network, NetworkPart(**config.model_dump()))


def test_a_map_lies_on_the_image_where_it_was_computed() -> None:
    # Given a map that is high in one corner
    heat = np.zeros((2, 4), np.float32)
    heat[0, 3] = 7.0

    spread = spread_map(heat, (80, 40))

    assert spread.shape == (40, 80)
    assert np.unravel_index(spread.argmax(), spread.shape)[0] < 15
    assert (spread[:10, 70:] == 1).all()
    assert spread[:, :45].max() == spread[30:].max() == 0
    assert spread_map(np.zeros((2, 4), np.float32), (8, 4)).max() == 0


def test_an_image_is_shown_in_its_own_proportions_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image_format in ("JPEG", "PNG"):
        out = io.BytesIO()
        Image.new("RGB", (600, 300), (200, 10, 10)).save(out, image_format, exif=exif)

        assert measure_image(out.getvalue()) == (300, 600)
        assert decode_shown(out.getvalue(), 100).shape == (100, 50, 3)
    # What is small stays so
    assert decode_shown(encode_image(np.zeros((20, 30, 3), np.uint8)), 100).shape == (20, 30, 3)
    with pytest.raises(RejectedImage, match="truncated"):
        measure_image(out.getvalue()[:200])


def test_an_explanation_names_its_maps_and_covers_the_image(explainer: Explainer) -> None:
    pixels, maps = explain_image(explainer, encode_image(np.zeros((30, 60, 3), np.uint8)), PATIENTS[0])

    assert pixels.shape == (30, 60, 3)
    attention, evidence, grad_cam = maps
    assert attention == "corrected soft attention"
    assert evidence.removeprefix("Evidence for ") == grad_cam.removeprefix("Grad-CAM of ")
    assert grad_cam.removeprefix("Grad-CAM of ") in CLASSES
    assert all(heat.shape == (30, 60) and heat.max() <= 1 for heat in maps.values())
