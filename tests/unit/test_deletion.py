"""The deletion test tells a map that knows from one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from model.artifact import read_manifest
from model.bootstrap import Interval
from model.card import explanation_section
from model.cli import main
from model.dataset import read_labels
from model.deletion import (
    STEPS,
    Fill,
    centre_heat,
    choose_images,
    compare_orders,
    delete_pixels,
    deletion_areas,
    order_pixels,
)
from model.splits import in_gate_set
from tests.labelled import draw_labelled

SIDE = 40
#: Where the toy model looks: a tenth of the image.
CORNER = np.s_[:10, :16]


def corner_is_bright(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A model whose probability is the brightness of one corner."""
    rows, columns = CORNER
    return np.asarray(images[:, rows, columns].mean(axis=(1, 2, 3)) / 255)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    made = np.full((SIDE, SIDE, 3), 100, np.uint8)
    made[CORNER] = 255
    return made


def area_of(heat: NDArray[np.floating] | None, pixels: NDArray[np.uint8], seed: int = 0) -> float:
    order = order_pixels(heat, (5, 5), SIDE, np.random.default_rng(seed))
    (area,) = deletion_areas(corner_is_bright, pixels, np.zeros_like(pixels), [order])
    return float(area)


def test_a_map_of_what_the_model_uses_has_the_smallest_area_and_its_reverse_the_largest(
    pixels: NDArray[np.uint8],
) -> None:
    # Given the map of the very pixels that the model looks at, and its reverse
    heat = np.zeros((SIDE, SIDE), np.float32)
    heat[CORNER] = 1

    # If they are deleted first, and last
    first, last = area_of(heat, pixels), area_of(-heat, pixels)

    # Then the probability falls from 1 to 0 in the first tenth, and in the last
    assert first == pytest.approx(1 / STEPS / 2)
    assert last == pytest.approx(1 - 1 / STEPS / 2)
    # And at random it lies in between: half, on average
    chance = [area_of(None, pixels, seed) for seed in range(60)]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.1)
    assert first < min(chance)
    assert max(chance) < last


def test_a_map_that_says_nothing_is_an_order_at_random(pixels: NDArray[np.uint8]) -> None:
    flat = np.ones((5, 5), np.float32)

    assert [area_of(flat, pixels, seed) for seed in range(5)] == [area_of(None, pixels, seed) for seed in range(5)]
    assert len({area_of(flat, pixels, seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("heat", [None, np.zeros((5, 5), np.float32), centre_heat(SIDE)])
def test_each_pixel_is_deleted_once(heat: NDArray[np.float32] | None) -> None:
    order = order_pixels(heat, (5, 5), SIDE, np.random.default_rng(0))

    assert np.sort(order).tolist() == list(range(SIDE * SIDE))


def test_from_the_middle_outwards_begins_in_the_middle() -> None:
    order = order_pixels(centre_heat(SIDE), (5, 5), SIDE, np.random.default_rng(0))

    rows, columns = np.unravel_index(order, (SIDE, SIDE))
    assert {int(rows[0]), int(columns[0])} <= {19, 20}
    assert {int(rows[-1]), int(columns[-1])} <= {0, SIDE - 1}


@pytest.mark.parametrize("fill", ["border", "blur"])
def test_a_deleted_image_has_its_colours_and_not_its_lesion(fill: Fill) -> None:
    # Given a dark lesion in the middle of skin
    pixels = np.full((64, 64, 3), (220, 170, 150), np.uint8)
    pixels[28:36, 28:36] = 20

    deleted = delete_pixels(pixels, fill)

    # Then only skin is left, and the image itself is as it was
    assert deleted.shape == pixels.shape
    assert np.abs(deleted.astype(int) - pixels[0, 0]).max() < 30
    assert pixels[30, 30].tolist() == [20, 20, 20]


def test_orders_are_compared_image_by_image() -> None:
    # Given images that differ a lot, on each of which attention loses to Grad-CAM by little
    base = np.random.default_rng(0).uniform(0.2, 0.8, 40)
    areas = {"attention": base + 0.02, "grad_cam": base, "centre": base + 0.02, "random": base + 0.1}

    found = compare_orders(areas, [f"L{number}" for number in range(40)], draws=200)

    # Then the difference is certain though the areas are not
    assert list(found.maps) == ["attention", "grad_cam", "centre"]
    against = found.maps["grad_cam"].attention_minus
    assert isinstance(against, Interval)
    assert [against.low, against.value, against.high] == pytest.approx([0.02] * 3)
    assert found.maps["attention"].less_than_random.value == pytest.approx(0.08)
    assert found.maps["attention"].attention_minus is None
    area = found.maps["attention"].area
    assert area.high is not None
    assert area.low is not None
    assert area.high - area.low > 0.05
    assert found.random is not None
    assert found.random.value == pytest.approx(base.mean() + 0.1)


@pytest.mark.parametrize(
    ("attention", "grad_cam", "said"),
    [
        (-0.1, -0.2, ["more than chance does", "Grad-CAM does better than attention."]),
        (0.1, 0.2, ["points away from", "Grad-CAM does worse than attention."]),
        (0.0, 0.0, ["no better than chance", "Grad-CAM does no better and no worse than attention, within the noise."]),
    ],
)
def test_the_card_says_what_the_intervals_say(
    artifact: Path, attention: float, grad_cam: float, said: list[str]
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 60))
    noise -= noise.mean(axis=1, keepdims=True)
    areas = {"attention": 0.5 + attention + noise[0], "grad_cam": 0.5 + grad_cam + noise[1], "random": np.full(60, 0.5)}

    found = compare_orders(areas, [str(number) for number in range(60)], draws=200, fill="blur")
    section = explanation_section(read_manifest(artifact), found)

    assert all(words in section for words in [*said, "are blurred away", "60 images", "| random | 0.500 "])


def test_each_lesion_of_the_gate_set_is_tested_once_and_no_other(tmp_path: Path) -> None:
    draw_labelled(tmp_path / "data", lesions=20)
    rows = read_labels(tmp_path / "data")

    some, every = choose_images([*rows, *rows], 3), choose_images([*rows, *rows], 1000)

    gate = {row.lesion_id for row in rows if in_gate_set(row.lesion_id)}
    assert {row.lesion_id for row in every} == gate
    assert len(every) == len(gate) > 3
    assert some == every[:3]
    assert some != choose_images(rows, 3, seed=1)


def test_a_copy_of_a_model_states_the_deletion_test_and_what_was_tried_and_scores_the_same(
    artifact: Path, tmp_path: Path
) -> None:
    # Given a deletion test and a trial, as files
    areas = {name: np.linspace(0.4, 0.6, 60) + shift for name, shift in (("attention", -0.1), ("random", 0.0))}
    found = compare_orders(areas, [str(number) for number in range(60)], draws=200, fill="border")
    (tmp_path / "deletion.json").write_text(found.model_dump_json(), encoding="utf-8")
    figure = {"value": 0.75, "low": 0.7, "high": 0.8}
    trial = {"name": "fewer epochs", "judged_on": "fold 0", "balanced_accuracy": figure, "macro_auc": figure}
    (tmp_path / "tried.json").write_text(json.dumps([{**trial, "melanoma_recall": figure}]), encoding="utf-8")
    command = ["restate", str(artifact), "--out", str(tmp_path / "copy")]

    # When the model is copied with them
    files = ["--explanation", str(tmp_path / "deletion.json"), "--trials", str(tmp_path / "tried.json")]
    result = CliRunner().invoke(main, [*command, *files])

    # Then the card says so, the digest is another, and the verdicts are the same
    assert result.exit_code == 0, result.output
    before, after = read_manifest(artifact), read_manifest(tmp_path / "copy")
    assert after.digest in result.output
    assert after.digest != before.digest
    card = (tmp_path / "copy" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "fewer epochs" in card
    assert "| random | 0.500 " in card
    assert after.model_dump(exclude={"metrics"}) == before.model_dump(exclude={"metrics"})
    assert (tmp_path / "copy" / "weights.h5").read_bytes() == (artifact / "weights.h5").read_bytes()

    # And neither nothing nor anything else is stated
    assert CliRunner().invoke(main, command).exit_code == 2
    (tmp_path / "deletion.json").write_text("{}", encoding="utf-8")
    refused = CliRunner().invoke(main, [*command[:-1], str(tmp_path / "other"), *files])
    assert refused.exit_code == 2
    assert "That is not what a card states" in refused.output
    assert not (tmp_path / "other").exists()
