"""No lesion on both sides of a split."""

from __future__ import annotations

import hashlib

import numpy as np

from model.splits import FOLDS, assign_folds, in_gate_set


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
