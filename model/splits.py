"""Which lesions train, which validate, and which only the gate may see."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.errors import LeakedSplitError

#: One lesion in ten belongs to the gate set: no model trains on it.
GATE_MODULUS: Final = 10
FOLDS: Final = 5
#: A part of the data has at least so many lesions of each class: five folds, two in each.
LEAST_LESIONS: Final = 10
#: Sides of a split; folds are sides too.
TRAINS: Final = 1
JUDGES: Final = 0
NO_SIDE: Final = -2
#: Name of the paper's split by image, which marks every report it touches.
LEAKY: Final = "leaky"


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


def choose_sides(
    folds: NDArray[np.int64], lesion_ids: Sequence[str], alike: NDArray[np.intp], judged: int | None
) -> NDArray[np.int64]:
    """Choose what trains where a fold judges: all others, without near-duplicates of what judges.

    On HAM10000 that concerns two images: HAM_0000140 and HAM_0004919 are one photograph in two colours, in folds 4
    and 0. Each still judges, and trains where the other does not judge.

    Args:
        folds: `(n,)` from `assign_folds`.
        lesion_ids: Lesion of each image.
        alike: `(pairs, 2)` from `model.duplicates.near_duplicates`.
        judged: The fold; None trains on all five.

    Returns:
        `(n,)`: `TRAINS`, or `JUDGES` of the fold and of the gate set, which judges every model in the end, or
        `NO_SIDE`.
    """
    sides = np.where(np.isin(folds, (-1,) if judged is None else (-1, judged)), JUDGES, TRAINS)
    for one, other in _crossing_pairs(sides, _number(lesion_ids), alike):
        sides[one if sides[one] == TRAINS else other] = NO_SIDE
    return sides


def check_split(sides: NDArray[np.int64], lesion_ids: Sequence[str], alike: NDArray[np.intp]) -> None:
    """Refuse a split in which something stands on two sides: the leak guard.

    Args:
        sides: `(n,)` side of each image; `NO_SIDE` is none.
        lesion_ids: Lesion of each image.
        alike: `(pairs, 2)` from `model.duplicates.near_duplicates`.

    Raises:
        LeakedSplitError: A lesion, or a near-duplicate by perceptual hash, stands on two sides; says how many images
            that concerns.
    """
    shared, near = count_leaks(sides, lesion_ids, alike)
    if shared or near:
        raise LeakedSplitError(
            f"This split leaks: {shared} images show a lesion that is also on another side, and {near} are near-"
            "duplicates of an image on another side. Split by lesion, and leave near-duplicates out."
        )


def count_leaks(
    sides: NDArray[np.int64], lesion_ids: Sequence[str], alike: NDArray[np.intp] | None = None
) -> tuple[int, int]:
    """Count the images whose lesion, and those whose near-duplicate of another lesion, stands on another side."""
    lesion, held = _number(lesion_ids), sides != NO_SIDE
    lowest, highest = np.full(lesion.max() + 1, np.iinfo(np.int64).max), np.full(lesion.max() + 1, NO_SIDE)
    np.minimum.at(lowest, lesion[held], sides[held])
    np.maximum.at(highest, lesion[held], sides[held])
    shared = int((held & (lowest[lesion] != highest[lesion])).sum())
    return shared, 0 if alike is None else len(np.unique(_crossing_pairs(sides, lesion, alike)))


def _number(lesion_ids: Sequence[str]) -> NDArray[np.intp]:
    return np.unique(np.asarray(lesion_ids), return_inverse=True)[1]


def _crossing_pairs(sides: NDArray[np.int64], lesion: NDArray[np.intp], alike: NDArray[np.intp]) -> NDArray[np.intp]:
    one, other = alike.T
    held = (sides[one] != NO_SIDE) & (sides[other] != NO_SIDE)
    return alike[held & (lesion[one] != lesion[other]) & (sides[one] != sides[other])]


def leaky_folds(lesion_ids: Sequence[str], labels: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.int64]:
    """Split as the paper did: a tenth of the images, stratified by class, whatever lesion they show.

    Only to repeat published figures, and to see how much of them is the leak: a report of it must say `LEAKY`.
    The gate set stays out of this too.

    Returns:
        `(n,)`: 0 to be judged, 1 to be trained on; -1 for the gate set.
    """
    from sklearn.model_selection import train_test_split

    folds = np.full(len(lesion_ids), -1, np.int64)
    ours = np.flatnonzero([not in_gate_set(lesion) for lesion in lesion_ids])
    training, judged = train_test_split(ours, test_size=0.1, stratify=labels[ours], random_state=seed)
    folds[training], folds[judged] = 1, 0
    return folds


def count_known(judged: NDArray[np.bool_], lesion_ids: Sequence[str]) -> int:
    """Count the judged images whose lesion is also among those trained on.

    Args:
        judged: `(n,)` which images are judged; the others are trained on.
        lesion_ids: Lesion of each image.
    """
    trained = {lesion for lesion, held in zip(lesion_ids, judged, strict=True) if not held}
    return sum(lesion in trained for lesion, held in zip(lesion_ids, judged, strict=True) if held)


def choose_part(lesion_ids: Sequence[str], labels: NDArray[np.int64], images: int) -> NDArray[np.bool_]:
    """Choose lesions that make up about so many images, each class with its share, where time is short.

    By the lesion's hash: whoever chooses from the same data chooses the same, and of more images these are a part.
    The gate set stays out. A rare class has `LEAST_LESIONS` lesions all the same, so that it is more frequent than it
    should be.

    Args:
        lesion_ids: Lesion of each of n images.
        labels: `(n,)` class indices.
        images: How many to choose.

    Returns:
        `(n,)` which images are chosen.
    """
    chosen: set[str] = set()
    ours = {lesion for lesion in lesion_ids if not in_gate_set(lesion)}
    held = np.array([lesion in ours for lesion in lesion_ids])
    for label in np.unique(labels[held]):
        sizes = Counter(
            lesion for lesion, one in zip(lesion_ids, labels, strict=True) if lesion in ours and one == label
        )
        wanted, taken = images * sizes.total() / held.sum(), 0
        for number, lesion in enumerate(sorted(sizes, key=lesion_hash)):
            if taken >= wanted and number >= LEAST_LESIONS:
                break
            chosen.add(lesion)
            taken += sizes[lesion]
    return np.array([lesion in chosen for lesion in lesion_ids])
