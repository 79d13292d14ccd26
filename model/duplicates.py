"""Near-duplicates: the same photograph, encoded, sized or coloured anew."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.dataset import THREADS, LabelledImage, read_image
from model.images import decode_image

#: The hash of Zauner 2010 ("Implementation and benchmarking of perceptual image hash functions", section 3.2.1): signs
#: of the lowest DCT coefficients around their median, of the image in grey at four times as many pixels. 8x8 bits
#: cannot tell one mole in the middle of skin from another (326 pairs of HAM10000's lesions within 4 bits of 64), 16x16
#: can.
_SIDE: Final = 16
_PIXELS: Final = 4 * _SIDE
BITS: Final = _SIDE * _SIDE
#: At most so many bits differ between near-duplicates: an eighth. On HAM10000 one pair of lesions lies within, at 16
#: bits, and is one photograph twice; the next pair, at 34, is two different moles.
MAX_BITS: Final = 32
#: Luma of RGB (ITU-R BT.601).
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
_ROWS_AT_ONCE: Final = 1000


def _cosines() -> NDArray[np.float32]:
    # DCT-II, its lowest rows.
    angles = np.pi * (2 * np.arange(_PIXELS) + 1) * np.arange(_SIDE)[:, None] / (2 * _PIXELS)
    return np.cos(angles).astype(np.float32)


def perceptual_hash(data: bytes, frame: int | None = None) -> NDArray[np.bool_]:
    """Hash an image file's appearance: `(256,)` bool.

    Args:
        data: The file's bytes.
        frame: Which frame, from 1, of a DICOM object with several.

    Raises:
        RejectedImage: The bytes are no usable image.
    """
    grey = decode_image(data, _PIXELS, frame).astype(np.float32) @ _LUMA
    cosines = _cosines()
    low = (cosines @ grey @ cosines.T).ravel()
    # The first coefficient is the mean brightness: it says nothing of what is to be seen.
    return low > np.median(low[1:])


def hash_images(rows: Sequence[LabelledImage]) -> NDArray[np.bool_]:
    """Hash images: `(n, 256)` bool.

    Raises:
        RejectedImage: An image cannot be read.
    """
    with ThreadPoolExecutor(max_workers=THREADS) as threads:
        hashes = list(threads.map(lambda row: perceptual_hash(read_image(row), row.frame), rows))
    return np.stack(hashes)


def near_duplicates(hashes: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Find the pairs of images whose hashes differ in at most 32 of 256 bits.

    Args:
        hashes: `(n, 256)` bool; 10 000 images take seconds.

    Returns:
        `(pairs, 2)` rows, the first before the second.
    """
    # As +-1, whose product counts agreeing bits less differing ones.
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    found = [np.empty((0, 2), np.intp)]
    for start in range(0, len(signs), _ROWS_AT_ONCE):
        agreement = signs[start : start + _ROWS_AT_ONCE] @ signs[start:].T
        first, second = np.nonzero(np.triu(agreement >= BITS - 2 * MAX_BITS, k=1))
        found.append(np.stack([first, second], axis=1) + start)
    return np.concatenate(found)
