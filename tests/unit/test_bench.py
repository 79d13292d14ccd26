"""The benchmark's own arithmetic: what it calls a ratio, a goal that is met, and a file that nobody has seen."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.images import decode_image, encode_image
from tests.benchmarks.bench import GOALS, Race, fill, judge
from tests.benchmarks.drawing import draw_bars
from tests.benchmarks.profiling import account, time_steps
from tests.light_classifier import LightClassifier
from worker.shelf import FolderShelf

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


def test_a_profile_accounts_for_all_the_time_of_an_image(tmp_path: Path) -> None:
    # Given ten images, which a batch does not divide, five of them bright enough to be flagged
    sources = [encode_image(np.full((40, 40, 3), shade, np.uint8)) for shade in (20, 210)]
    files = fill(tmp_path / "archive", sources, 10, "profile")
    ledger = {"recorded_a_second": 1000, "loaded_a_second": 2000, "rung_a_second": 4000}

    # If a worker does one a second
    steps = time_steps(LightClassifier("a" * 64), files, FolderShelf(tmp_path / "store"))
    found = account(steps, ledger, 1.0)

    # Then every step has its time, all of them add up to a second of each core, and the pictures are those of the five
    assert min(found.values()) > 0
    assert sum(found.values()) == pytest.approx(1000 * len(os.sched_getaffinity(0)))
    assert found["ledger: claim and record"] == 1
    assert len(list((tmp_path / "store" / "thumbs").iterdir())) == 5
