"""The paper's networks to the last parameter, and every backbone's life from random weights to an artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.architectures import TABLE_8, paper_network
from model.artifact import NetworkPart, read_manifest, shipped_artifact, write_artifact
from model.backbones import BACKBONES, BackboneName, freeze_first_blocks
from model.classifier import load_network, network_arrays
from model.familiarity import COMPONENTS, MEASURED, PROTOTYPES, FeatureSpace, pack_spaces
from model.labels import CLASSES
from model.metadata import PatientMetadata, encode_metadata, metadata_width
from model.network import NetworkConfig, build_network, fit_age
from model.summary import count_multiply_adds, summarise_network
from model.weights import pack_weights

LARGE = {"DenseNet201", "InceptionResNetV2", "ResNet152", "NASNetLarge", "NASNetMobile"}
EVERY = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in BACKBONES]

#: What the notebooks print: parameters, and the shape of the map that attention sees.
GOLDEN: dict[BackboneName, tuple[int, tuple[int, ...]]] = {
    "MobileNetV3Large": (2_666_922, (7, 7, 960)),
    "MobileNetV3Small": (990_010, (7, 7, 576)),
    "MobileNetV2": (1_354_714, (7, 7, 960)),
    "NASNetMobile": (3_956_094, (7, 7, 176)),
    "DenseNet201": (17_596_250, (7, 7, 128)),
    "ResNet50": (24_460_186, (7, 7, 2048)),
    "InceptionResNetV2": (47_654_074, (8, 8, 192)),
    "ResNet152": (50_299_802, (7, 7, 2048)),
    "NASNetLarge": (78_573_004, (11, 11, 672)),
}
GOLDEN_CUTS = [("[:240]", True, 2_666_922), ("[:246]", True, 2_694_762), ("[:230]", True, 2_153_642)]

#: Cuts on a 1x1 map, where attention is the constant 16.
CONSTANT = {"[:230]", "[:251]", "[:266]", "[:270]", "[:230] without metadata"}


@pytest.mark.parametrize("name", [parameter for parameter in EVERY if parameter.values[0] in GOLDEN])
def test_the_papers_networks_have_the_notebooks_parameters_and_maps(name: BackboneName) -> None:
    network = build_network(paper_network(name))

    parameters, shape = GOLDEN[name]
    assert network.count_params() == parameters
    assert network.get_layer("backbone").output.shape[1:] == shape


@pytest.mark.parametrize(("cut", "metadata", "parameters"), [*GOLDEN_CUTS, ("[:240]", False, 2_548_135)])
def test_the_cuts_of_the_optimised_model_have_the_notebooks_parameters(
    cut: str, metadata: bool, parameters: int
) -> None:
    network = build_network(paper_network("MobileNetV3Large", metadata=metadata, cut=cut))

    assert network.count_params() == parameters


def test_table_8_has_ten_rows_on_seven_cuts_and_five_of_them_on_maps_of_one_position() -> None:
    assert len(TABLE_8) == 10
    assert len({config.cut for name, config in TABLE_8.items() if name != "plain"}) == 7
    images = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)

    for name, config in TABLE_8.items():
        network = build_network(config)
        outputs = network([images, np.zeros((1, metadata_width(config.metadata)), np.float32)])

        assert ("attention" in outputs) is (name != "plain")
        if name != "plain":
            assert np.asarray(outputs["attention"]).sum() == pytest.approx(16, rel=1e-4)
            assert (outputs["attention"].shape[1:] == (1, 1)) is (name in CONSTANT)
        assert ("hidden" in [layer.name for layer in network.layers]) is name.endswith("Dense(512)")


def test_the_age_is_normalised_by_the_training_rows_and_nothing_else_is() -> None:
    # Given a network of the paper's metadata, and one of ours
    ages = [30.0, 40.0, 80.0]
    rows = [PatientMetadata(age=age, sex="male", localization="back") for age in ages]
    paper = build_network(NetworkConfig(backbone="MobileNet", input_size=32, metadata="paper"))
    ours = build_network(NetworkConfig(backbone="MobileNet", input_size=32))
    before = ours.get_weights()

    # If both are fitted to the training rows
    encoded = encode_metadata(rows, "paper")
    fit_age(paper, encoded)
    fit_age(ours, encode_metadata(rows))

    # Then the paper's ages have mean 0 and deviation 1, and nothing else has changed
    normalised = np.asarray(paper.get_layer("age_normalization")(encoded))
    np.testing.assert_allclose(normalised[:, 0], (np.array(ages) - np.mean(ages)) / np.std(ages), rtol=1e-5)
    np.testing.assert_array_equal(normalised[:, 1:], encoded[:, 1:])
    assert all(np.array_equal(one, other) for one, other in zip(before, ours.get_weights(), strict=True))
    # One age alone has no deviation
    fit_age(paper, encoded[:1])
    assert np.isfinite(paper.get_layer("age_normalization")(encoded)).all()


@pytest.mark.parametrize("metadata", ["paper", "gessert", "small", "none"])
def test_metadata_reach_the_logits_only_where_the_network_has_a_branch(metadata: Any) -> None:
    network = build_network(NetworkConfig(backbone="MobileNet", input_size=32, metadata=metadata))
    images = np.zeros((2, 32, 32, 3), np.float32)
    patients = [PatientMetadata(age=80, sex="male", localization="back"), PatientMetadata(age=20, sex="female")]

    logits = np.asarray(network([images, encode_metadata(patients, metadata)], training=False)["logits"])

    assert np.array_equal(logits[0], logits[1]) is (metadata == "none")


def train_a_step(network: keras.Model, images: Any, metadata: Any) -> None:
    with tf.GradientTape() as tape:
        logits = network([images, metadata], training=True)["logits"]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[0, 4], logits=logits))
    gradients = tape.gradient(loss, network.trainable_variables)
    # Every part that can learn is asked to.
    assert np.isfinite(float(loss))
    assert all(gradient is not None for gradient in gradients)
    # The first gradient of the deepest networks at random weights is of the order of a million.
    keras.optimizers.SGD(1e-2, global_clipnorm=1.0).apply(gradients, network.trainable_variables)


@pytest.mark.parametrize("name", EVERY)
def test_a_backbone_trains_a_step_is_saved_as_an_artifact_and_predicts_the_same_when_loaded(
    name: BackboneName, tmp_path: Path
) -> None:
    # Given a network on the backbone, its first blocks frozen, after a training step
    config = NetworkConfig(backbone=name, input_size=96, intermediate=True)
    network = build_network(config)
    backbone = network.get_layer("backbone")
    freeze_first_blocks(backbone, name)
    start = [np.asarray(variable) for variable in backbone.trainable_variables]
    images = np.random.default_rng(0).uniform(-1, 1, (2, 96, 96, 3)).astype(np.float32)
    metadata = encode_metadata([PatientMetadata(age=50), PatientMetadata(sex="female")])
    train_a_step(network, images, metadata)
    moved = [np.any(np.asarray(v) != old) for v, old in zip(backbone.trainable_variables, start, strict=True)]
    assert np.mean(moved) > 0.5

    # If its weights are rounded, written as an artifact, and loaded into a network built anew
    arrays: dict[str, Any] = {}
    for key, variable in network_arrays(network).items():
        arrays[key] = np.asarray(variable).astype(np.float16)
        variable.assign(arrays[key].astype(np.float32))
    widths = {output: network.output[output].shape[-1] for output in MEASURED}
    spaces = {
        output: FeatureSpace(
            mean=np.zeros(width, np.float32),
            projection=np.zeros((width, COMPONENTS), np.float32),
            centres=np.zeros((len(CLASSES), COMPONENTS), np.float32),
            residual=np.ones((), np.float32),
            prototypes=np.zeros((PROTOTYPES, width), np.float32),
        )
        for output, width in widths.items()
    }
    weights = pack_weights(arrays | pack_spaces(spaces))
    shipped = read_manifest(shipped_artifact())
    described = {
        "referral": shipped.referral.model_copy(update={"prototypes": PROTOTYPES}),
        "network": NetworkPart(**config.model_dump()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    write_artifact(tmp_path / "model", shipped.model_copy(update=described), weights)
    loaded, _ = load_network(tmp_path / "model", read_manifest(tmp_path / "model"))

    # Then both predict the same
    one, other = (np.asarray(each([images, metadata], training=False)["logits"]) for each in (network, loaded))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "million"),
    # Howard et al. 2017 (1704.04861, table 4) and 2019 (1905.02244, table 3), at 224 px with the ImageNet classifier
    [("MobileNet", 569), ("MobileNetV3Small", 56), ("MobileNetV3Large", 219)],
)
def test_multiply_adds_are_those_the_networks_papers_state(name: str, million: int) -> None:
    application = getattr(keras.applications, name)(input_shape=(224, 224, 3), weights=None)

    assert count_multiply_adds(application) / 1e6 == pytest.approx(million, rel=0.02)


def test_a_summary_says_where_the_network_is_cut_and_what_it_costs() -> None:
    summary = summarise_network(paper_network("MobileNetV3Large"))

    assert summary.parameters == 2_666_922
    assert summary.flops == 2 * summary.multiply_adds
    assert (summary.cut, summary.cut_name) == ("activation after expanded_conv_14_expand_bn", "[:240]")
    assert summary.feature_map == (7, 7, 960)
