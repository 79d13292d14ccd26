"""A model is built from a folder of labelled images, judged on lesions held out, and written as an artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from model.build import BuildConfig, Workshop
from model.card import read_card
from model.classifier import Classifier
from model.cli import main
from model.dataset import METADATA_FILE, load_images, read_labels
from model.errors import TrainingDataError
from model.network import NetworkConfig
from model.recipes import RECIPES, configure
from model.splits import in_gate_set
from model.starting import StartWeights
from model.synthetic import synthesize_archive
from model.training import Progress, Stage, Trainer, TrainingConfig, TrainingSet
from tests.labelled import draw_labelled

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


def test_a_near_duplicate_of_what_judges_a_network_does_not_train_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a photograph that is there again, smaller, as another lesion's of another fold, and as one of the gate set
    data = tmp_path / "data"
    shutil.copytree(images, data)
    rows = read_labels(data)
    plain = workshop(data, tmp_path / "plain", Seen())
    fold_of = dict(zip((row.lesion_id for row in plain.rows), plain.folds.tolist(), strict=True))
    one = next(row for row in rows if fold_of.get(row.lesion_id) == 0)
    two = next(row for row in rows if fold_of.get(row.lesion_id) == 1 and row.lesion_id != one.lesion_id)
    three = next(row for row in rows if row.lesion_id not in fold_of)
    for copy in (two, three):
        with Image.open(data / one.path) as image:
            image.resize((300, 225)).save(data / copy.path, quality=80)
    trained: list[set[str]] = []

    def train_on(self: Workshop, fold: int | None, *_: object) -> keras.Model:
        trained.append({self.rows[index].image_id for index in self.choose_training(fold)[0]})
        raise StopIteration

    monkeypatch.setattr(Workshop, "_train_on", train_on)

    # If networks are trained for both folds, for a third one and on all
    built = workshop(data, tmp_path / "run", Seen())
    for fold in (0, 1, 2, None):
        with pytest.raises(StopIteration):
            built._train(fold)

    # Then neither is where the other judges, nor anywhere, as the gate set judges every network in the end
    assert all(not {one.image_id, two.image_id, three.image_id} & seen for seen in trained)
    # And the others are there
    assert "judged by a near-duplicate of what trained it, which concerns 3 images" in built._say_alike()
    sizes = [np.count_nonzero(built.folds != fold) for fold in (0, 1, 2)]
    assert [len(seen) for seen in trained] == [sizes[0] - 1, sizes[1] - 1, sizes[2] - 2, len(built.folds) - 2]


def test_a_run_folder_is_not_shared_by_two_recipes(images: Path, tmp_path: Path) -> None:
    workshop(images, tmp_path, Seen())

    with pytest.raises(TrainingDataError, match="another recipe"):
        workshop(images, tmp_path, Seen(), TRAINING.model_copy(update={"smoothing": 0.0}))


@pytest.mark.parametrize("command", ["train", "cross-validate"])
def test_data_without_a_diagnosis_is_refused_before_anything_is_trained(tmp_path: Path, command: str) -> None:
    # Given images of enough lesions, but of nine dermatofibromas, and of no vascular lesion
    draw_labelled(tmp_path / "data", lesions=12)
    table = tmp_path / "data" / METADATA_FILE
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    scarce = [f"lesion-df-{number}," for number in range(9, 12)] + ["lesion-vasc"]
    table.write_text("".join(line for line in lines if not line.startswith(tuple(scarce))), encoding="utf-8")
    packed = ["--out", str(tmp_path / "model")] if command == "train" else []

    # If a model is to be trained on them
    asked = [command, str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--weights", "none", *packed]
    answer = CliRunner().invoke(main, asked)

    # Then one sentence says what is missing, and nothing was begun
    assert answer.exit_code == 2, answer.output
    assert "There are too few lesions of df (9), vasc (0): a model needs 10 of each class" in answer.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "cross-validate"])
def test_a_fold_too_small_to_be_judged_alone_is_refused_before_anything_is_trained(
    tmp_path: Path, command: str
) -> None:
    # Given few images, as many of each class
    draw_labelled(tmp_path / "data", lesions=12)
    packed = ["--out", str(tmp_path / "model")] if command == "train" else []
    asked = [command, str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--weights", "none", *packed]

    # If one fold of them is to judge a model
    answer = CliRunner().invoke(main, [*asked, "--fold", "0"])

    # Then one sentence says what to do instead, and nothing was trained
    assert answer.exit_code == 2, answer.output
    assert "too small to be calibrated and judged alone" in answer.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_folds_without_a_class_and_trainings_without_one_are_refused(images: Path, tmp_path: Path) -> None:
    # Given a class that stands in one fold alone
    made = workshop(images, tmp_path, Seen())
    made.folds[made.labels == 5] = 2

    # Then neither the others can judge it, nor can what judges it be trained
    with pytest.raises(TrainingDataError, match="no image of nv in fold 0, 1"):
        made.insist_on_judges([0, 1])
    with pytest.raises(TrainingDataError, match="no image of nv outside fold 2"):
        made.insist_on_judges(range(5))


def test_the_plateau_schedule_watches_lesions_it_does_not_train_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a trainer that notes what it is given
    given: list[TrainingSet] = []

    class Noting(Trainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            given.extend(one for one in arguments if isinstance(one, TrainingSet))
            super().__init__(*arguments, **options)

    monkeypatch.setattr("model.build.Trainer", Noting)
    training = TrainingConfig(stages=TRAINING.stages, schedule="plateau", ema=0, drop_missing_ages=True)

    # If a network is trained
    made = workshop(images, tmp_path, Seen(), training)
    made.cross_validate([0])

    # Then no lesion is on both sides, none of the judged ones on either, and all others with an age on one
    pixels = load_images(made.rows, training.kept_size)
    lesions = {shown.tobytes(): row.lesion_id for shown, row in zip(pixels, made.rows, strict=True)}
    learned, watched = ({lesions[shown.tobytes()] for shown in one.images} for one in given)
    judged = {row.lesion_id for row, fold in zip(made.rows, made.folds, strict=True) if fold == 0}
    assert watched
    assert not learned & watched
    assert not judged & (learned | watched)
    aged = [row for row, fold in zip(made.rows, made.folds, strict=True) if fold and row.patient.age is not None]
    assert sum(len(one.labels) for one in given) == len(aged) < int((made.folds != 0).sum())
    assert [len(one.labels) for one in given] == [len(rows) for rows in made.choose_training(0)]
    # And its loss on the watched ones is kept
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


@pytest.mark.parametrize("stages", ["lots", "1x0", "0x32", "-3x32", "1x31", "4x128,0x224", ""])
def test_stages_that_train_nothing_are_a_usage_error(images: Path, tmp_path: Path, stages: str) -> None:
    run = tmp_path / "run"

    answer = CliRunner().invoke(main, ["cross-validate", str(images), "--run", str(run), f"--stages={stages}"])

    assert answer.exit_code == 2
    assert "4x128,8x224" in answer.stderr
    assert not run.exists()


@pytest.mark.parametrize("options", [["--input-size", "64"], ["--stages", "1x64,1x96"]])
def test_images_too_small_for_a_backbone_are_a_usage_error(images: Path, tmp_path: Path, options: list[str]) -> None:
    asked = ["cross-validate", str(images), "--run", str(tmp_path / "run"), "--backbone", "InceptionResNetV2"]

    answer = CliRunner().invoke(main, [*asked, *options])

    assert answer.exit_code == 2
    assert "InceptionResNetV2 takes images of at least 75 pixels" in answer.stderr


def test_a_file_is_no_run_folder(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")

    answer = CliRunner().invoke(main, ["cross-validate", str(images), "--run", str(tmp_path / "run")])

    assert answer.exit_code == 2
    assert "is a file" in answer.stderr


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

        assert seen.parts == (["fold-0", "fold-0-second"] if name == "pair" else ["fold-0"])


def test_the_second_network_of_a_pair_sees_smaller_images_and_other_stages_are_for_both() -> None:
    (first, training), (second, other) = configure("pair").parts

    assert (first.input_size, second.input_size) == (288, 224)
    assert (max(training.sizes), max(other.sizes)) == (288, 224)
    assert training == configure("default").training
    asked = configure("pair", stages=[(1, 96), (1, 256)], input_size=160)
    assert [(member.input_size, one.sizes, one.seed) for member, one in asked.parts] == [
        (160, [96, 256], 0),
        (160, [96, 160], 1),
    ]


def test_the_papers_recipe_shows_images_at_the_size_its_head_was_built_for() -> None:
    config = configure("paper-metadata", backbone="InceptionResNetV2")

    assert {stage.size for stage in config.training.stages} == {config.network.input_size} == {299}


def test_an_unknown_recipe_is_named_with_those_there_are(images: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["cross-validate", str(images), "--run", str(tmp_path), "--recipe", "magic"])

    assert answer.exit_code == 2
    assert "default" in answer.stderr
