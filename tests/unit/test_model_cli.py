"""`lesion-model` answers in plain sentences and documented exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from model.artifact import read_manifest
from model.calibration import posterior
from model.classifier import Classifier
from model.cli import main
from model.dataset import read_labels
from model.images import decode_image, encode_image, measure_image
from model.judging import judge_images
from model.labels import CLASSES
from model.report import Evaluation, Explanation
from model.synthetic import draw_lesion, synthesize_archive
from tests.labelled import draw_labelled


@pytest.fixture
def lesion(tmp_path: Path) -> Path:
    path = tmp_path / "lesion.jpg"
    path.write_bytes(encode_image(draw_lesion(np.random.default_rng(0))))
    return path


def test_predict_scores_what_it_can_and_names_the_rest(artifact: Path, lesion: Path, tmp_path: Path) -> None:
    # Given a sound image and a broken one
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html></html>")

    # If both are asked about
    asked = ["predict", str(lesion), str(broken), "--model", str(artifact), "--age", "50"]
    answered = CliRunner().invoke(main, [*asked, "--json"])

    # Then the first has its probabilities, the second its reason, and the exit code says that some failed
    sound, rejected = (json.loads(line) for line in answered.stdout.splitlines())
    assert answered.exit_code == 1
    assert rejected == {"image": str(broken), "rejected": "not_an_image"}
    assert list(sound["probabilities"]) == list(CLASSES)
    assert sum(sound["probabilities"].values()) == pytest.approx(1)
    assert sound["model"] == read_manifest(artifact).digest


def test_predict_in_words_says_that_it_is_no_medical_device_and_calls_nothing_benign(
    artifact: Path, lesion: Path
) -> None:
    answered = CliRunner().invoke(main, ["predict", str(lesion), "--model", str(artifact)])

    assert answered.exit_code == 0
    assert "prioritised" in answered.stdout
    assert "Not a medical device" in answered.stderr
    assert "benign" not in answered.output


def test_a_damaged_model_is_said_in_one_sentence(lesion: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    answered = CliRunner().invoke(main, ["predict", str(lesion), "--model", str(tmp_path / "model")])

    assert answered.exit_code == 2
    assert answered.stderr == "lesion-model: The model has no readable manifest.json: install it again.\n"


def test_synthesize_states_the_counts_and_leaves_a_folder_in_use_alone(tmp_path: Path) -> None:
    asked = ["synthesize", str(tmp_path / "archive"), "--images", "2", "--broken", "5"]

    drawn, again = CliRunner().invoke(main, asked), CliRunner().invoke(main, asked)

    assert drawn.exit_code == 0
    assert "2 synthetic images and 5 broken entries" in drawn.stdout
    assert again.exit_code == 2
    assert "not empty" in again.stderr


def test_summary_states_what_the_papers_network_costs_in_json_and_in_words() -> None:
    asked = ["summary", "MobileNetV3Large", "--recipe", "paper-metadata"]

    stated, said = CliRunner().invoke(main, [*asked, "--json"]), CliRunner().invoke(main, asked)

    figures = json.loads(stated.stdout)
    assert figures["parameters"] == 2_666_922
    assert figures["flops"] == 2 * figures["multiply_adds"]
    assert figures["cut"] == "activation after expanded_conv_14_expand_bn"
    assert "parameters: 2666922\n" in said.stdout
    assert said.exit_code == 0


@pytest.mark.parametrize("asked", [["AlexNet"], ["MobileNet", "--recipe", "alchemy"]])
def test_summary_names_what_there_is_where_it_does_not_know_the_asked(asked: list[str]) -> None:
    answered = CliRunner().invoke(main, ["summary", *asked])

    assert answered.exit_code == 2
    assert "there are: " in answered.stderr


def test_a_card_is_printed_for_any_model(artifact: Path) -> None:
    printed = CliRunner().invoke(main, ["card", "--model", str(artifact)])

    assert printed.exit_code == 0
    assert printed.stdout.strip() == (artifact / "MODEL_CARD.md").read_text(encoding="utf-8").strip()


def test_a_model_is_judged_as_a_worker_would_score(artifact: Path, tmp_path: Path) -> None:
    # Given a labelled folder
    folder = tmp_path / "data"
    synthesize_archive(folder, images=24, broken=0, seed=1)
    images = sorted(path.stem for path in folder.rglob("*.jpg"))[:21]
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    lines += [f"L{n // 3},{name},{CLASSES[n % 7]},histo,50,male,back" for n, name in enumerate(images)]
    (folder / "HAM10000_metadata.csv").write_text("\n".join(lines) + "\n")

    # If a model is judged on it
    asked = ["evaluate", str(folder), "--model", str(artifact)]
    found = Evaluation.model_validate_json(CliRunner().invoke(main, [*asked, "--json"]).stdout)

    # Then it is what its single answers say
    assert (found.images, found.lesions) == (21, 7)
    classifier = Classifier.load(artifact)
    rows = read_labels(folder)
    verdicts = judge_images(classifier, rows)
    assert np.mean(verdicts.diagnoses == verdicts.labels) == pytest.approx(found.accuracy.value)
    for index in (0, 20):
        pixels = classifier.decode((folder / rows[index].path).read_bytes()).pixels
        (alone,) = classifier.classify(pixels[None], [rows[index].patient])
        assert verdicts.posteriors[index] == pytest.approx(alone.probabilities, abs=1e-5)
        assert CLASSES[verdicts.diagnoses[index]] == alone.diagnosis
        assert verdicts.referred[index] == alone.referred
    # And at its own temperature the uncalibrated posteriors become the calibrated ones: they have its offsets
    assert verdicts.packed
    logits = np.log(verdicts.uncalibrated / verdicts.prior)
    again = posterior(logits, verdicts.prior, classifier.manifest.calibration.temperature)
    assert again == pytest.approx(verdicts.posteriors, abs=1e-6)
    # And people get tables, and are told what the model was trained on
    shown = CliRunner().invoke(main, [*asked, "--plots", str(tmp_path / "plots" / "new")])
    assert "| malignant ROC AUC |" in shown.stdout
    assert "was trained on: noise. On images it was trained on these" in shown.stderr
    # And the plots they asked for
    names = {path.name for path in (tmp_path / "plots" / "new").iterdir()}
    assert names == {"confusion.png", "roc.png", "reliability.png"}


def test_the_curves_of_a_run_are_plotted_and_a_run_without_any_is_said_plainly(tmp_path: Path) -> None:
    # Given a run of two epochs, and a folder without one
    (tmp_path / "run" / "fold-0").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    rows = [
        {"epoch": 1, "size": 32, "loss": 2.0, "seconds": 1.0},
        {"epoch": 2, "size": 64, "loss": 1.0, "seconds": 1.0},
    ]
    (tmp_path / "run" / "fold-0" / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    # If both are asked for
    out = str(tmp_path / "plots" / "curves.png")
    drawn = CliRunner().invoke(main, ["curves", str(tmp_path / "run"), "--out", out])
    missing = CliRunner().invoke(main, ["curves", str(tmp_path / "empty"), "--out", str(tmp_path / "none.png")])

    # Then the first is there, and the second is one sentence
    assert drawn.exit_code == 0
    assert decode_image(Path(out).read_bytes(), (850, 500)).std() > 0
    assert missing.exit_code == 2
    assert missing.stderr == "lesion-model: The run folder holds no learning curve: no epoch has ended in it.\n"
    assert not (tmp_path / "none.png").exists()


def test_explain_shows_the_maps_beside_the_image_and_names_what_it_cannot_read(
    artifact: Path, lesion: Path, tmp_path: Path
) -> None:
    # Given a sound image and a broken one
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html></html>")

    # If both are to be explained
    out = tmp_path / "maps"
    asked = ["explain", "--model", str(artifact), "--out", str(out)]
    answered = CliRunner().invoke(main, [*asked, str(lesion), str(broken)])

    # Then the first has its picture, three panels wide, the second its reason, and the exit code says that one failed
    assert answered.exit_code == 1
    assert answered.stdout == f"{lesion}: {out / 'lesion-explained.png'}\n{broken}: not explained (not_an_image)\n"
    assert [path.name for path in out.iterdir()] == ["lesion-explained.png"]
    width, height = measure_image((out / "lesion-explained.png").read_bytes())
    assert width > 2.5 * height
    # And two images that would have one picture are refused
    twice = CliRunner().invoke(main, [*asked, str(lesion), str(lesion)])
    assert twice.exit_code == 2
    assert "explain them apart" in twice.stderr


def test_a_models_maps_are_put_to_the_deletion_test(artifact: Path, tmp_path: Path) -> None:
    draw_labelled(tmp_path / "data", lesions=8)
    asked = ["deletion-test", str(tmp_path / "data"), "--model", str(artifact), "--images", "2"]

    said = CliRunner().invoke(main, asked)
    found = Explanation.model_validate_json(CliRunner().invoke(main, [*asked, "--json"]).stdout)

    assert "Deletion test on 2 images, each of another lesion: pixels take the colour of the image's" in said.stdout
    # And the same question has the same answer, random orders and all
    assert (found.images, found.fill, set(found.maps)) == (2, "border", {"attention", "evidence", "grad_cam", "centre"})
    assert f"| Grad-CAM (baseline) | {found.maps['grad_cam'].area:.3f} |" in said.stdout


def test_a_folder_without_the_gate_sets_lesions_cannot_test_a_models_maps(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx,dx_type,age,sex,localization\n")

    answered = CliRunner().invoke(main, ["deletion-test", str(tmp_path / "data"), "--model", str(artifact)])

    assert answered.exit_code == 2
    assert "no lesion of the gate set" in answered.stderr
