"""The benchmark's own arithmetic: what it calls a ratio, a goal that is met, and a file that nobody has seen."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from model.images import decode_image, encode_image
from tests.benchmarks.bench import GOALS, Race, fill, judge
from tests.benchmarks.drawing import draw_bars

if TYPE_CHECKING:
    from pathlib import Path


def test_a_ratio_is_taken_within_a_round() -> None:
    # Given a machine that was half as fast in the second round, and one round in which something disturbed the other
    race = Race(rates={"ours": [100, 50, 100], "loop": [10, 5, 2]})

    # Then the slow round changes nothing, and neither does the disturbed one
    assert race.ratio("ours", "loop") == 10


def test_a_goal_is_met_from_its_figure_on_and_a_time_up_to_it() -> None:
    exact = {name: goal for name, (goal, _) in GOALS.items()}
    assert all(line.startswith("| pass |") for line in judge(exact))

    worse = {name: goal * (1.01 if name == "first_result_seconds" else 0.99) for name, goal in exact.items()}
    assert all(line.startswith("| **missed** |") for line in judge(worse))
    assert judge({}) == []


def test_files_of_a_round_are_new_and_show_the_same_picture(tmp_path: Path) -> None:
    # Given one picture
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    source = encode_image(pixels)

    # If two rounds are written of it
    files = [*fill(tmp_path / "a", [source], 2, "round 0"), *fill(tmp_path / "b", [source], 2, "round 1")]

    # Then no two files have the same bytes, and all show it
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == 4
    expected = decode_image(source, 32)
    assert all(np.array_equal(decode_image(path.read_bytes(), 32), expected) for path in files)


def test_the_plot_is_a_picture_with_a_bar_a_way(tmp_path: Path) -> None:
    draw_bars(
        tmp_path / "bench.png", "Title", {"kind": {"ours": [2.0, 3.0], "bound of ours": [4.0, 4.0], "loop": [1.0, 1.0]}}
    )

    assert decode_image((tmp_path / "bench.png").read_bytes(), 100).std() > 5
