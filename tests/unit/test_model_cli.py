"""`lesion-model` answers in plain sentences and documented exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from model.artifact import read_manifest
from model.cli import main
from model.images import encode_image
from model.labels import CLASSES
from model.synthetic import draw_lesion


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
