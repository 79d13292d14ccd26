"""Every backbone is one row: scaled as its weights expect, cut where it says, named the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest

from model.backbones import (
    BACKBONES,
    BackboneName,
    PixelRange,
    PixelScaling,
    _name_layers,
    build_backbone,
    freeze_first_blocks,
)
from model.errors import ModelError
from model.network import NetworkConfig

#: Where `keras.applications` keeps each one's `preprocess_input`.
FAMILIES = {
    "DenseNet201": "densenet",
    "InceptionResNetV2": "inception_resnet_v2",
    "ResNet50": "resnet",
    "ResNet152": "resnet",
    "VGG16": "vgg16",
    "NASNetLarge": "nasnet",
    "NASNetMobile": "nasnet",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
}
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)


def test_the_table_has_every_backbone_of_the_paper_and_a_default_cut_for_each() -> None:
    assert set(BACKBONES) == set(get_args(BackboneName))
    for name, row in BACKBONES.items():
        assert row.application == name
        assert {"last", row.paper_cut} <= set(row.cuts)


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_are_scaled_as_keras_scales_them_for_the_same_network(name: BackboneName) -> None:
    expected = getattr(keras.applications, FAMILIES[name]).preprocess_input(PIXELS.copy())

    scaled = PixelScaling(BACKBONES[name].pixels)(PIXELS / 127.5 - 1)

    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["MobileNetV3Small", "ResNet50", pytest.param("DenseNet201", marks=pytest.mark.slow)])
def test_a_backbone_computes_what_the_application_does_on_its_own_preprocessing(name: BackboneName) -> None:
    # Given a backbone of each range, and Keras's own application with the same weights
    backbone = build_backbone(name, 32)
    application = getattr(keras.applications, name)(input_shape=(32, 32, 3), include_top=False, weights=None)
    application.set_weights(backbone.get_weights())

    # If one sees [-1, 1] and the other what its preprocessing makes of [0, 255]; MobileNetV3 has that inside
    preprocessed = PIXELS
    if name in FAMILIES:
        preprocessed = getattr(keras.applications, FAMILIES[name]).preprocess_input(PIXELS.copy())

    # Then both see the same
    found, expected = np.asarray(backbone(PIXELS / 127.5 - 1)), np.asarray(application(preprocessed))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("pixels", get_args(PixelRange))
def test_the_scaling_is_rebuilt_from_its_description(pixels: PixelRange) -> None:
    assert PixelScaling.from_config(PixelScaling(pixels).get_config()).pixels == pixels


@pytest.mark.parametrize("name", BACKBONES)
def test_the_intermediate_map_is_a_sixteenth_of_the_image_and_lies_before_every_cut(name: BackboneName) -> None:
    cuts = [cut for cut, layer in BACKBONES[name].cuts.items() if not layer.top]

    for cut in cuts:
        alone, both = build_backbone(name, 128, cut=cut), build_backbone(name, 128, cut=cut, intermediate=True)
        feature_map, intermediate = both.output
        # Some networks lose a pixel at each border before that.
        assert intermediate.shape[1:3] in {(8, 8), (6, 6)}
        assert feature_map.shape == alone.output.shape
        assert both.count_params() == alone.count_params()


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2", "MobileNetV3Large", "ResNet50"])
def test_the_stem_and_first_blocks_stay_and_the_rest_trains(name: BackboneName) -> None:
    backbone = build_backbone(name, 32)

    freeze_first_blocks(backbone, name)

    layers = [layer for layer in backbone.layers if layer.weights]
    trains = [layer.trainable for layer in layers]
    assert 2 <= trains.index(True) < len(trains) / 3
    assert trains == sorted(trains)
    assert not backbone.get_layer(BACKBONES[name].frozen).trainable


def test_an_unknown_cut_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"MobileNet has no cut '\[:240\]'; it has last"):
        NetworkConfig(backbone="MobileNet", cut="[:240]")


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_weights_of_a_file_are_the_backbones(tmp_path: Path, suffix: str) -> None:
    # Given a file of Keras's application, in its own format or the one of Keras 2
    application = keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None)
    path = tmp_path / f"notop{suffix}"
    (application.save if suffix == ".h5" else application.save_weights)(path)

    # If a backbone takes it
    backbone = build_backbone("MobileNetV2", 64, path)

    # Then its weights are those
    for mine, other in zip(backbone.get_weights(), application.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_weights_that_are_another_networks_or_none_are_refused_in_a_sentence(tmp_path: Path) -> None:
    other = keras.applications.MobileNet(input_shape=(32, 32, 3), include_top=False, weights=None)
    path = tmp_path / "other.weights.h5"
    other.save_weights(path)

    for file in (path, tmp_path / "absent.weights.h5"):
        with pytest.raises(ModelError, match="another network's weights"):
            build_backbone("MobileNetV2", 32, file)


def test_imagenets_weights_out_of_reach_are_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a host from which nothing can be downloaded, and no file kept from before
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))

    with pytest.raises(ModelError, match="cannot be downloaded: give a file of weights"):
        build_backbone("MobileNetV3Small", 32, "imagenet")


def test_layers_that_keras_numbers_are_named_as_in_the_first_model_of_a_process_and_keep_their_weights() -> None:
    # Given a model whose layers have no names of their own, and a second one, for which Keras counts on
    def build() -> keras.Model:
        image = keras.Input((8, 8, 3))
        first = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(image))
        named = keras.layers.Conv2D(4, 3, name="named")(first)
        return keras.Model(image, keras.layers.Conv2D(4, 3)(named))

    build()
    second = build()
    second.set_weights([np.random.default_rng(0).normal(0, 1, weight.shape) for weight in second.weights])

    # If its layers are named anew
    renamed = _name_layers(second, keep=True)

    # Then the numbers begin at the beginning, and it computes the same
    assert [layer.name for layer in renamed.layers[1:]] == ["conv2d", "batch_normalization", "named", "conv2d_1"]
    image = np.ones((1, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(renamed(image), second(image))
