"""No lesion on both sides of a split."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from model.errors import LeakedSplitError
from model.splits import (
    FOLDS,
    JUDGES,
    LEAST_LESIONS,
    NO_SIDE,
    TRAINS,
    assign_folds,
    check_split,
    choose_part,
    choose_sides,
    count_known,
    count_leaks,
    in_gate_set,
    leaky_folds,
)


def test_no_lesion_stands_in_two_folds_and_the_gate_set_in_none() -> None:
    # Given three images of each of 1 000 lesions
    lesions = [f"HAM_{number // 3:07d}" for number in range(3000)]
    labels = np.array([number // 3 % 7 for number in range(3000)])

    # If folds are assigned
    folds = assign_folds(lesions, labels)

    # Then each lesion has one fold, the gate set -1, and every fold every class
    by_lesion: dict[str, set[int]] = {}
    for lesion, fold in zip(lesions, folds.tolist(), strict=True):
        by_lesion.setdefault(lesion, set()).add(fold)
    assert all(len(found) == 1 for found in by_lesion.values())
    assert all((found == {-1}) == in_gate_set(lesion) for lesion, found in by_lesion.items())
    assert set(folds.tolist()) == {-1, *range(FOLDS)}
    for fold in range(FOLDS):
        assert set(labels[folds == fold].tolist()) == set(range(7))


def test_the_gate_set_is_the_stated_tenth() -> None:
    chosen = [lesion for lesion in (f"L{number}" for number in range(5000)) if in_gate_set(lesion)]

    assert 400 < len(chosen) < 600
    assert all(int(hashlib.sha256(lesion.encode()).hexdigest(), 16) % 10 == 0 for lesion in chosen)


def test_the_folds_are_the_ones_that_models_were_judged_by() -> None:
    # Given 500 lesions of one to three images
    lesions = [f"HAM_{number:07d}" for number in range(500) for _ in range(1 + number % 3)]
    labels = np.array([number % 7 for number in range(500) for _ in range(1 + number % 3)])

    folds = assign_folds(lesions, labels)

    # Then they are what they were when the first model was shipped: figures of different days compare
    digest = hashlib.sha256(folds.astype("<i8").tobytes()).hexdigest()
    assert digest == "bd6daa086ef8dcc9498bac3f5fd24b7b242efb88ed32f692cc22bfc9e8b24f8f"


def pairs(*found: tuple[int, int]) -> NDArray[np.intp]:
    """Pairs of near-duplicates."""
    return np.array(found, np.intp).reshape(-1, 2)


def test_the_leak_guard_lets_a_split_by_lesion_pass() -> None:
    # Given near-duplicates of one lesion, of two on one side, and of two of which one is on no side
    lesions = [f"L{number // 2}" for number in range(200)]
    folds = np.arange(200) // 2 % 5
    folds[150] = NO_SIDE

    check_split(folds, lesions, pairs((0, 1), (0, 10), (0, 150)))


def test_the_leak_guard_refuses_a_lesion_on_two_sides_and_says_how_many_images_that_concerns() -> None:
    # Given three images of one lesion, one of them on another side, and a fourth on none
    folds = np.array([0, 0, 1, 1, 1, NO_SIDE])

    with pytest.raises(LeakedSplitError, match="3 images show a lesion"):
        check_split(folds, ["a", "a", "a", "b", "c", "a"], pairs())


def test_the_leak_guard_refuses_a_near_duplicate_under_another_lesions_name() -> None:
    with pytest.raises(LeakedSplitError, match="2 are near-duplicates"):
        check_split(np.array([0, 0, 1, 1]), ["a", "b", "c", "d"], pairs((0, 3)))


@pytest.mark.parametrize(
    ("judged", "sides"),
    [
        (0, [JUDGES, JUDGES, JUDGES, NO_SIDE, TRAINS, NO_SIDE, JUDGES]),
        (1, [NO_SIDE, TRAINS, TRAINS, JUDGES, JUDGES, NO_SIDE, JUDGES]),
        (2, [TRAINS, TRAINS, TRAINS, TRAINS, TRAINS, JUDGES, JUDGES]),
        (None, [TRAINS, TRAINS, TRAINS, TRAINS, TRAINS, NO_SIDE, JUDGES]),
    ],
)
def test_nothing_is_trained_on_that_is_a_near_duplicate_of_what_judges(judged: int | None, sides: list[int]) -> None:
    # Given a photograph under two names in two folds, one under two names in one fold, and one that the gate set has
    folds, lesions = np.array([0, 0, 0, 1, 1, 2, -1]), ["a", "b", "c", "d", "d", "e", "f"]
    alike = pairs((0, 3), (1, 2), (5, 6))

    # If sides are chosen, then what is a near-duplicate of the judged fold or of the gate set trains no model
    chosen = choose_sides(folds, lesions, alike, judged)
    assert chosen.tolist() == sides
    check_split(chosen, lesions, alike)


def test_the_papers_split_leaks_and_leaves_the_gate_set_alone() -> None:
    lesions = [f"HAM_{number // 3:07d}" for number in range(3000)]
    labels = np.array([number // 3 % 7 for number in range(3000)])

    folds = leaky_folds(lesions, labels)

    assert all((fold == -1) == in_gate_set(lesion) for fold, lesion in zip(folds.tolist(), lesions, strict=True))
    assert np.count_nonzero(folds == 0) == pytest.approx(0.1 * np.count_nonzero(folds >= 0), abs=1)
    assert (np.bincount(labels[folds == 0]) > 30).all()
    shared, _ = count_leaks(folds, lesions)
    assert shared > 600


def test_a_part_holds_whole_lesions_of_every_class_and_the_same_ones_each_time() -> None:
    # Given three images of each lesion, of a frequent and a rare class
    lesions = [f"HAM_{number // 3:07d}" for number in range(3000)]
    labels = np.array([0 if number < 90 else 5 for number in range(3000)])

    chosen, fewer = choose_part(lesions, labels, 600), choose_part(lesions, labels, 300)

    taken = {lesion for lesion, held in zip(lesions, chosen, strict=True) if held}
    assert np.count_nonzero(chosen) == 3 * len(taken) == pytest.approx(600, abs=30)
    assert not any(in_gate_set(lesion) for lesion in taken)
    # The rare class has its least, which is more than its share
    assert np.count_nonzero(chosen & (labels == 0)) == 3 * LEAST_LESIONS
    assert not (fewer & ~chosen).any()


def test_known_lesions_are_counted_among_the_judged() -> None:
    judged = np.array([True, True, False, False, True])

    assert count_known(judged, ["a", "b", "a", "c", "a"]) == 2
