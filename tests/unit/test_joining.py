"""Networks beside each other are trained apart and speak as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest

from model.artifact import NetworkPart, read_manifest
from model.build import HELD_OUT_FILE, BuildConfig, Workshop
from model.classifier import Classifier, load_network, network_arrays
from model.dataset import read_labels
from model.errors import ModelError
from model.explain import Explainer
from model.joining import fit_images, split_network, spread_places
from model.litert import LiteRT, agree
from model.metadata import PatientMetadata, encode_metadata
from model.network import BesideConfig, NetworkConfig, build_network, shift_logits
from model.package import package_model
from model.recipes import configure
from model.starting import StartWeights, parse_weights
from model.synthetic import synthesize_archive
from model.training import Progress, Stage, Trainer, TrainingConfig, TrainingSet
from tests.random_model import draw_model

ALONE = NetworkConfig(backbone="MobileNet", input_size=64, intermediate=True)
BIG, SMALL = (BesideConfig(backbone="MobileNet", input_size=size) for size in (64, 32))
MIXED = ALONE.model_copy(update={"beside": (BesideConfig(backbone="MobileNetV2", input_size=64),)})
THREE = ALONE.model_copy(update={"beside": (SMALL, BIG)})
EACH = pytest.mark.parametrize("config", [MIXED, THREE], ids=["mixed", "three"])
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


@EACH
def test_they_say_the_mean_of_what_each_says_and_measure_distances_by_the_first(config: NetworkConfig) -> None:
    joined = draw_model(config).network
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)

    members = split_network(joined)
    assert [one.inputs[0].shape[1] for one in members] == [64, *(one.input_size for one in config.beside)]
    inputs = [keras.ops.convert_to_tensor(one) for one in (images, METADATA)]
    apart = [one(fit_images(one, inputs), training=False) for one in members]
    said = joined([images, METADATA], training=False)

    for name in ("logits", "attention"):
        values = [np.asarray(one[name]) for one in apart]
        assert not np.array_equal(values[0], values[1])
        if name == "attention":
            # The single place of a map of one is all four of another.
            values = [np.full((2, 2, 2), value / 4) if value.size == 2 else value for value in values]
        assert np.asarray(said[name]) == pytest.approx(np.mean(values, axis=0), abs=1e-5)
    for name in ("features", "intermediate"):
        np.testing.assert_array_equal(said[name], apart[0][name])
        assert not np.array_equal(apart[0][name], apart[1][name])
    # And offsets move its logits once
    offsets = np.arange(7.0)
    shift_logits(joined, offsets)
    moved = np.asarray(joined([images, METADATA], training=False)["logits"])
    assert moved == pytest.approx(np.asarray(said["logits"]) + offsets, abs=1e-5)


def test_backbones_with_maps_of_two_sizes_speak_of_the_firsts_places() -> None:
    beside = (BesideConfig(backbone="MobileNet", input_size=96),)
    network = build_network(NetworkConfig(backbone="InceptionResNetV2", beside=beside, input_size=96))

    assert [one.output["attention"].shape[1:] for one in split_network(network)] == [(1, 1), (3, 3)]
    attention = np.asarray(network([np.zeros((2, 96, 96, 3)), METADATA])["attention"])
    assert attention.reshape(-1) == pytest.approx([16, 16], rel=1e-4)


@pytest.mark.parametrize(("old", "new"), [((7, 7), (9, 9)), ((2, 3), (5, 2)), ((1, 1), (4, 4)), ((3, 3), (3, 3))])
def test_a_map_laid_over_other_places_keeps_its_sum_and_its_side(old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(0, 1, (2, *old, 7)).astype(np.float32)

    spread = np.asarray(spread_places(maps, new))

    assert spread.shape == (2, *new, 7)
    assert spread.sum(axis=(1, 2)) == pytest.approx(maps.sum(axis=(1, 2)), abs=1e-4)
    np.testing.assert_allclose(np.asarray(spread_places(maps[..., 0], new)), spread[..., 0], atol=1e-6)
    # What is in the first row and last column is there still
    corner = np.zeros((1, *old), np.float32)
    corner[0, 0, -1] = 1.0
    assert np.asarray(spread_places(corner, new))[0, 0, -1] == np.asarray(spread_places(corner, new)).max() > 0


def test_models_of_earlier_versions_name_the_second_ones_backbone_alone() -> None:
    given = {"backbone": "MobileNet", "input_size": 96, "beside": "MobileNetV2"}

    assert NetworkConfig(**given).beside == (BesideConfig(backbone="MobileNetV2", input_size=96),)
    alone = NetworkConfig(**given | {"beside": None})
    assert alone.beside == ()
    # And run folders of one network know it by what was written then
    assert alone.model_dump(mode="json")["beside"] is None
    stated = NetworkPart(**{**alone.model_dump(), "beside": "MobileNetV2"})
    assert stated.model_dump()["beside"] == "MobileNetV2"
    assert (stated.backbones, stated.sizes) == ("MobileNet and MobileNetV2", (96,))
    assert "beside" not in NetworkPart(**alone.model_dump()).model_dump()
    with pytest.raises(ValueError, match="larger images than the first"):
        NetworkConfig(**given | {"beside": [{"backbone": "MobileNet", "input_size": 128}]})


def test_networks_are_named_in_words() -> None:
    assert (ALONE.backbones, THREE.backbones) == ("MobileNet", "three MobileNets")
    beside = (*MIXED.beside, BIG, *MIXED.beside)
    assert ALONE.model_copy(update={"beside": beside}).backbones == "two MobileNets and two MobileNetV2s"


@EACH
def test_grad_cam_speaks_of_the_firsts_places(config: NetworkConfig) -> None:
    config = config.model_copy(update={"attention": "none", "intermediate": False})
    network = draw_model(config).network
    explainer = Explainer(network, NetworkPart(**config.model_dump()))

    maps = explainer.explain(
        np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8), [PatientMetadata()] * 2
    )

    assert maps.grad_cam.shape == (2, 2, 2)
    assert maps.evidence is not None
    assert maps.evidence.shape == (2, 2, 2)


def test_networks_beside_the_first_are_trained_as_the_recipe_says_or_as_it_is() -> None:
    training = TrainingConfig(stages=(Stage(epochs=2, size=32), Stage(epochs=1, size=64)), seed=5)
    config = BuildConfig(network=THREE, training=training)

    networks, trainings = zip(*config.parts, strict=True)

    assert networks == THREE.members
    assert [one.seed for one in trainings] == [5, 6, 7]
    assert [one.sizes for one in trainings] == [[32, 32, 64], [32, 32, 32], [32, 32, 64]]
    # And where a recipe for one, or for two, is given a model of three, or of one, to go on from
    assert configure("default").on(THREE).parts[1][1].sizes == [32] * 17
    assert [one for one, _ in configure("pair").on(THREE).parts] == [*THREE.members]
    assert configure("pair").on(ALONE).parts == ((ALONE, TrainingConfig()),)
    twice = ALONE.model_copy(update={"beside": (BIG,)})
    assert [max(one.sizes) for _, one in configure("pair").on(twice).parts] == [288, 64]
    assert configure("pair").on(configure("pair").network) == configure("pair")
    told = (training.model_copy(update={"smoothing": 0.0}), training.model_copy(update={"seed": 9}))
    assert config.model_copy(update={"beside": told}).parts[1:] == tuple(zip(THREE.members[1:], told, strict=True))


@EACH
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

    assert parts == ["fold-0", "fold-0-second", "fold-0-third"][: len(config.members)]
    saved = [np.load(tmp_path / "run" / part / HELD_OUT_FILE) for part in parts]
    # Where nothing but chance sets them apart, as the first and the last of three, it does.
    assert not np.allclose(saved[0]["logits"], saved[-1]["logits"])
    np.testing.assert_array_equal(saved[0]["rows"], saved[-1]["rows"])
    np.testing.assert_array_equal(held_out.logits, np.mean([one["logits"] for one in saved], axis=0))
    np.testing.assert_array_equal(held_out.logits_without_metadata, np.mean([one["without"] for one in saved], axis=0))
    np.testing.assert_array_equal(held_out.distances, saved[0]["distances"])


@EACH
def test_the_artifact_has_the_weights_of_all_and_both_engines_say_the_same(
    packed: Callable[[NetworkConfig], Path], config: NetworkConfig
) -> None:
    manifest = read_manifest(packed(config))
    network, _ = load_network(packed(config), manifest)

    names = set(network_arrays(network))
    inner = {"MobileNet": "conv_pw_1", "MobileNetV2": "block_1_expand"}
    prefixes = ("network", "beside", "beside2")[: len(config.members)]
    assert {name.partition(".")[0] for name in names} == {*prefixes}
    for prefix, member in zip(prefixes, config.members, strict=True):
        assert {f"{prefix}.classifier.kernel", f"{prefix}.{inner[member.backbone]}.kernel"} <= names
    classifier = Classifier.load(packed(config))
    images = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), np.uint8)
    metadata = encode_metadata([PatientMetadata(age=age) for age in range(20, 100, 10)])
    frozen = classifier._engine
    assert np.ptp(frozen.run(images, metadata)[0], axis=0).max() > 0.01
    assert agree(frozen, LiteRT(frozen), [(images, metadata)])  # type: ignore[arg-type] # of a CPU


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize(("config", "order"), [(MIXED, 0), (MIXED, 1), (THREE, 1), (THREE, 2)])
def test_each_goes_on_from_its_own_part_of_a_model_whatever_that_measured(
    packed: Callable[[NetworkConfig], Path], tmp_path: Path, config: NetworkConfig, order: int, measured: bool
) -> None:
    # Whatever size its images had: these weights do not depend on it
    model, mine = packed(config), config.members[order].model_copy(update={"intermediate": measured, "input_size": 96})
    network, _ = load_network(model, read_manifest(model))
    images = np.zeros((4, 64, 64, 3), np.uint8)
    start = TrainingSet(images=images, metadata=METADATA[[0, 1, 0, 1]], labels=np.arange(4))

    trainer = Trainer(mine, TrainingConfig(batch_size=4), start, model, tmp_path, order=order)

    assert ("intermediate" in trainer.model.output) == measured
    for ours, theirs in zip(trainer.model.get_weights(), split_network(network)[order].get_weights(), strict=True):
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
