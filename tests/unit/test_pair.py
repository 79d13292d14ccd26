"""Two networks beside each other are trained apart and speak as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest

from model.artifact import read_manifest
from model.build import HELD_OUT_FILE, BuildConfig, Workshop
from model.classifier import Classifier, load_network, network_arrays
from model.dataset import read_labels
from model.errors import ModelError
from model.litert import LiteRT, agree
from model.metadata import PatientMetadata, encode_metadata
from model.network import NetworkConfig, build_network, shift_logits, split_network
from model.package import package_model
from model.starting import StartWeights, parse_weights
from model.synthetic import synthesize_archive
from model.training import Progress, Stage, Trainer, TrainingConfig, TrainingSet
from tests.random_model import draw_model

MIXED = NetworkConfig(backbone="MobileNet", beside="MobileNetV2", input_size=64, intermediate=True)
TWICE = MIXED.model_copy(update={"beside": "MobileNet"})
EITHER = pytest.mark.parametrize("config", [MIXED, TWICE], ids=["mixed", "twice"])
METADATA = encode_metadata([PatientMetadata(age=50), PatientMetadata(sex="female")])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    synthesize_archive(folder, images=180, broken=0, seed=0)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[NetworkConfig], Path]:
    @cache
    def pack(config: NetworkConfig) -> Path:
        folder = tmp_path_factory.mktemp("pair") / "model"
        package_model(draw_model(config), folder, name="Two networks", data="noise", git_commit="unknown")
        return folder

    return pack


@EITHER
def test_the_pair_says_the_mean_of_what_each_says_and_measures_distances_by_the_first(config: NetworkConfig) -> None:
    pair = draw_model(config).network
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)

    first, second = (one([images, METADATA], training=False) for one in split_network(pair))
    said = pair([images, METADATA], training=False)

    for name in ("logits", "attention"):
        assert np.asarray(said[name]) == pytest.approx((np.asarray(first[name]) + np.asarray(second[name])) / 2)
        assert not np.array_equal(first[name], second[name])
    for name in ("features", "intermediate"):
        np.testing.assert_array_equal(said[name], first[name])
        assert not np.array_equal(first[name], second[name])
    # And offsets move its logits once
    offsets = np.arange(7.0)
    shift_logits(pair, offsets)
    moved = np.asarray(pair([images, METADATA], training=False)["logits"])
    assert moved == pytest.approx(np.asarray(said["logits"]) + offsets, abs=1e-5)


def test_networks_with_maps_of_two_sizes_make_no_pair() -> None:
    with pytest.raises(ModelError, match="differ in size"):
        build_network(NetworkConfig(backbone="InceptionResNetV2", beside="MobileNet", input_size=96))


@EITHER
@pytest.mark.usefixtures("eagerly")
def test_each_is_trained_by_itself_and_their_mean_is_judged(data: Path, tmp_path: Path, config: NetworkConfig) -> None:
    parts = []
    training = TrainingConfig(stages=(Stage(epochs=1, size=32),))

    def seen(part: str, progress: Progress) -> None:
        if progress.row is not None:
            parts.append(part)

    workshop = Workshop(
        read_labels(data),
        BuildConfig(network=config, training=training),
        weights=StartWeights(otherwise=None),
        run=tmp_path / "run",
        report=seen,
    )
    held_out = workshop.cross_validate([0])

    assert parts == ["fold-0", f"fold-0-{config.beside}"]
    first, second = (np.load(tmp_path / "run" / part / HELD_OUT_FILE) for part in parts)
    # Where nothing but chance sets them apart, it does.
    assert not np.allclose(first["logits"], second["logits"])
    np.testing.assert_array_equal(first["rows"], second["rows"])
    np.testing.assert_array_equal(held_out.logits, (first["logits"] + second["logits"]) / 2)
    np.testing.assert_array_equal(held_out.logits_without_metadata, (first["without"] + second["without"]) / 2)
    np.testing.assert_array_equal(held_out.distances, first["distances"])


@EITHER
def test_the_artifact_has_the_weights_of_both_and_both_engines_say_the_same(
    packed: Callable[[NetworkConfig], Path], config: NetworkConfig
) -> None:
    manifest = read_manifest(packed(config))
    network, _ = load_network(packed(config), manifest)

    names = set(network_arrays(network))
    inner = {"MobileNet": "conv_pw_1", "MobileNetV2": "block_1_expand"}[str(config.beside)]
    assert {"network.classifier.kernel", "beside.classifier.kernel", f"beside.{inner}.kernel"} <= names
    classifier = Classifier.load(packed(config))
    images = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), np.uint8)
    metadata = encode_metadata([PatientMetadata(age=age) for age in range(20, 100, 10)])
    frozen = classifier._engine
    assert np.ptp(frozen.run(images, metadata)[0], axis=0).max() > 0.01
    assert agree(frozen, LiteRT(frozen), [(images, metadata)])  # type: ignore[arg-type] # of a CPU


@EITHER
@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("second", [0, 1])
def test_each_goes_on_from_its_own_half_of_a_pair_whatever_that_measured(
    packed: Callable[[NetworkConfig], Path], tmp_path: Path, config: NetworkConfig, second: int, measured: bool
) -> None:
    model, mine = packed(config), config.members[second].model_copy(update={"intermediate": measured})
    network, _ = load_network(model, read_manifest(model))
    images = np.zeros((4, 64, 64, 3), np.uint8)
    start = TrainingSet(images=images, metadata=METADATA[[0, 1, 0, 1]], labels=np.arange(4))

    trainer = Trainer(mine, TrainingConfig(batch_size=4), start, model, tmp_path, second=second)

    assert ("intermediate" in trainer.model.output) == measured
    for ours, theirs in zip(trainer.model.get_weights(), split_network(network)[second].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ModelError, match="another network"):
        Trainer(
            mine.model_copy(update={"metadata": "none"}), TrainingConfig(batch_size=4), start, model, tmp_path / "no"
        )
    keras.utils.clear_session()


def test_start_weights_are_told_apart_by_backbone(tmp_path: Path) -> None:
    file = tmp_path / "some.weights.h5"
    file.touch()

    weights = parse_weights([f"MobileNetV2={file}", "none"])

    assert (weights.of("MobileNetV2"), weights.of("MobileNet")) == (file, None)
    assert weights.name("MobileNet", "MobileNetV2") == "none, some.weights.h5"
    assert parse_weights([]).of("VGG16") == "imagenet"
    assert parse_weights([str(file)]).name("VGG16") == "some.weights.h5"
    with pytest.raises(ModelError, match="--weights MobileNet=nowhere is not"):
        parse_weights(["MobileNet=nowhere"])
