"""Which lesions train, which validate, and which only the gate may see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: One lesion in ten belongs to the gate set: no model trains on it.
GATE_MODULUS: Final = 10
FOLDS: Final = 5


def lesion_hash(lesion_id: str) -> int:
    """sha256 of a lesion's id as a number, by which lesions are set apart for good."""
    return int.from_bytes(hashlib.sha256(lesion_id.encode()).digest(), "big")


def in_gate_set(lesion_id: str) -> bool:
    """Say whether a lesion belongs to the gate set: sha256(lesion_id) mod 10 = 0."""
    return lesion_hash(lesion_id) % GATE_MODULUS == 0


def assign_folds(lesion_ids: Sequence[str], labels: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.int64]:
    """Assign every image a fold, so that a lesion never stands in two and each fold has every class.

    Args:
        lesion_ids: Lesion of each of n images.
        labels: `(n,)` class indices.
        seed: Seed of the shuffle.

    Returns:
        `(n,)` folds 0 to 4; -1 for the gate set.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = np.full(len(lesion_ids), -1, np.int64)
    lesions = np.asarray(lesion_ids)
    ours = np.flatnonzero([not in_gate_set(lesion) for lesion in lesion_ids])
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(ours, labels[ours], lesions[ours])):
        folds[ours[held_out]] = fold
    return folds
