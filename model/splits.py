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


def check_split(folds: NDArray[np.int64], lesion_ids: Sequence[str], hashes: NDArray[np.bool_]) -> None:
    """Refuse a split in which something stands on two sides: the leak guard.

    Args:
        folds: `(n,)` side of each image.
        lesion_ids: Lesion of each image.
        hashes: `(n, 256)` from `model.duplicates.hash_images`.

    Raises:
        LeakedSplitError: A lesion, or a near-duplicate by perceptual hash, stands on two sides; says how many images
            that concerns.
    """
    shared, alike = count_leaks(folds, lesion_ids, hashes)
    if shared or alike:
        raise LeakedSplitError(
            f"This split leaks: {shared} images show a lesion that is also on another side, and {alike} are near-"
            "duplicates of an image on another side. Split by lesion, and leave near-duplicates out."
        )


def count_leaks(
    folds: NDArray[np.int64], lesion_ids: Sequence[str], hashes: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """Count the images whose lesion, and those whose near-duplicate of another lesion, stands on another side."""
    _, lesion = np.unique(np.asarray(lesion_ids), return_inverse=True)
    lowest, highest = np.full(lesion.max() + 1, np.iinfo(np.int64).max), np.full(lesion.max() + 1, -2)
    np.minimum.at(lowest, lesion, folds)
    np.maximum.at(highest, lesion, folds)
    shared = int((lowest[lesion] != highest[lesion]).sum())
    return shared, 0 if hashes is None else len(np.unique(_crossing_pairs(folds, lesion, hashes)))


def _crossing_pairs(folds: NDArray[np.int64], lesion: NDArray[np.intp], hashes: NDArray[np.bool_]) -> NDArray[np.intp]:
    from model.duplicates import near_duplicates

    pairs = near_duplicates(hashes)
    first, second = pairs.T
    return pairs[(lesion[first] != lesion[second]) & (folds[first] != folds[second])]


def leave_out_duplicates(
    folds: NDArray[np.int64], lesion_ids: Sequence[str], hashes: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Take lesions out of the folds whose near-duplicate stands in another fold, and leave all others where they are.

    Moving them together would reshuffle every fold; HAM10000 loses two of its 7 470 lesions this way (HAM_0000140 and
    HAM_0004919 are one photograph in two colours, in folds 4 and 0).

    Returns:
        `(n,)` folds, with -1 for what no model may train on: the gate set, and those lesions.
    """
    _, lesion = np.unique(np.asarray(lesion_ids), return_inverse=True)
    out = np.unique(lesion[_crossing_pairs(folds, lesion, hashes).ravel()])
    return np.where(np.isin(lesion, out), -1, folds)


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
