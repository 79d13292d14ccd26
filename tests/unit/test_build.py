"""A model is built from a folder of labelled images, judged on lesions held out, and written as an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from model.build import BuildConfig, Workshop
from model.card import read_card
from model.classifier import Classifier
from model.cli import main
from model.dataset import read_labels
from model.errors import TrainingDataError
from model.network import NetworkConfig
from model.recipes import RECIPES, configure
from model.splits import in_gate_set
from model.starting import StartWeights
from model.synthetic import synthesize_archive
from model.training import Progress, Stage, TrainingConfig

# The backbone with the fewest layers: building its graphs takes most of the time of these tests.
NETWORK = NetworkConfig(backbone="MobileNet", input_size=32)
TRAINING = TrainingConfig(stages=(Stage(epochs=1, size=32),))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    synthesize_archive(folder, images=180, broken=0, seed=0)
    return folder


class Seen:
    def __init__(self) -> None:
        self.parts: list[str] = []

    def __call__(self, part: str, progress: Progress) -> None:
        if progress.row is not None:
            self.parts.append(part)


def workshop(images: Path, run: Path, seen: Seen, training: TrainingConfig = TRAINING) -> Workshop:
    return Workshop(
        read_labels(images),
        BuildConfig(network=NETWORK, training=training),
        weights=StartWeights(otherwise=None),
        run=run,
        report=seen,
    )


@pytest.mark.usefixtures("eagerly")
def test_folds_are_judged_by_networks_that_did_not_see_their_lesions_and_not_twice(
    images: Path, tmp_path: Path
) -> None:
    # Given two folds that were judged
    seen = Seen()
    held_out = workshop(images, tmp_path, seen).cross_validate([0, 3])
    assert seen.parts == ["fold-0", "fold-3"]

    # If they are asked for again
    again = Seen()
    repeated = workshop(images, tmp_path, again).cross_validate([0, 3])

    # Then nothing is trained, and they say the same about the same images
    assert again.parts == []
    np.testing.assert_array_equal(repeated.logits, held_out.logits)
    assert set(held_out.folds) == {0, 3}
    first, fourth = (
        {lesion for lesion, fold in zip(held_out.lesion_ids, held_out.folds, strict=True) if fold == one}
        for one in (0, 3)
    )
    assert not first & fourth
    assert not any(in_gate_set(lesion) for lesion in held_out.lesion_ids)


def test_a_run_folder_is_not_shared_by_two_recipes(images: Path, tmp_path: Path) -> None:
    workshop(images, tmp_path, Seen())

    with pytest.raises(TrainingDataError, match="another recipe"):
        workshop(images, tmp_path, Seen(), TRAINING.model_copy(update={"smoothing": 0.0}))


def test_the_plateau_schedule_watches_lesions_it_does_not_train_on(images: Path, tmp_path: Path) -> None:
    training = TrainingConfig(stages=TRAINING.stages, schedule="plateau", ema=0)

    workshop(images, tmp_path, Seen(), training).cross_validate([0])

    (line,) = (tmp_path / "fold-0" / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    assert np.isfinite(json.loads(line)["validation_loss"])


# A fold of so few images has a class in fewer lesions than the parts it is calibrated in.
@pytest.mark.filterwarnings("ignore:The least populated class")
@pytest.mark.parametrize(
    ("recipe", "backbones"), [("default", "MobileNet"), ("pair", "two MobileNets")], ids=["one", "pair"]
)
def test_training_on_the_command_line_writes_an_artifact_that_loads(
    images: Path, tmp_path: Path, recipe: str, backbones: str
) -> None:
    folders = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "model")]
    options = ["--recipe", recipe, "--stages", "1x32", "--input-size", "32", "--weights", "none", "--fold", "0"]

    answer = CliRunner().invoke(main, ["train", str(images), *folders, *options])

    assert answer.exit_code == 0, answer.output
    classifier = Classifier.load(tmp_path / "model")
    assert classifier.digest in answer.stdout
    assert classifier.manifest.name == f"{backbones} with soft attention"
    assert f"| network | {backbones}, corrected" in read_card(tmp_path / "model")
    # And once more is refused
    again = CliRunner().invoke(main, ["train", str(images), *folders, *options])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_stages_that_say_nothing_are_a_usage_error(images: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["cross-validate", str(images), "--run", str(tmp_path), "--stages", "lots"])

    assert answer.exit_code == 2
    assert "4x128,8x224" in answer.stderr


@pytest.mark.usefixtures("eagerly")
def test_every_recipe_trains_a_step(images: Path, tmp_path: Path) -> None:
    for name in RECIPES:
        config = configure(name, backbone="MobileNet", input_size=64, stages=[(1, 32)])
        training = config.training.model_copy(update={"images_an_epoch": config.training.batch_size})
        seen = Seen()

        Workshop(
            read_labels(images),
            config.model_copy(update={"training": training}),
            weights=StartWeights(otherwise=None),
            run=tmp_path / name,
            report=seen,
        ).cross_validate([0])

        assert seen.parts == (["fold-0", "fold-0-MobileNet"] if name == "pair" else ["fold-0"])


def test_the_papers_recipe_shows_images_at_the_size_its_head_was_built_for() -> None:
    config = configure("paper-metadata", backbone="InceptionResNetV2")

    assert {stage.size for stage in config.training.stages} == {config.network.input_size} == {299}


def test_an_unknown_recipe_is_named_with_those_there_are(images: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["cross-validate", str(images), "--run", str(tmp_path), "--recipe", "magic"])

    assert answer.exit_code == 2
    assert "default" in answer.stderr
