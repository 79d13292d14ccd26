"""One photograph, encoded anew, is known again; two lesions are not taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.dataset import read_labels
from model.duplicates import BITS, MAX_BITS, hash_images, near_duplicates, perceptual_hash
from model.images import encode_image
from model.synthetic import HEIGHT, WIDTH, draw_lesion, synthesize_archive


def draw(seed: int) -> NDArray[np.uint8]:
    return draw_lesion(np.random.default_rng(seed))


def test_a_photograph_is_known_again_smaller_brighter_and_in_another_format() -> None:
    image = draw(0)
    original = perceptual_hash(encode_image(image))
    rows, columns = (np.arange(0, side, 2) for side in (HEIGHT, WIDTH))
    variants = {
        "png": encode_image(image, "PNG"),
        "half": encode_image(np.ascontiguousarray(image[rows][:, columns])),
        "brighter": encode_image(np.clip(image * 1.15, 0, 255).astype(np.uint8)),
        "redder": encode_image(np.clip(image * np.array([1.1, 1.0, 0.9]), 0, 255).astype(np.uint8)),
    }

    for name, data in variants.items():
        assert np.count_nonzero(perceptual_hash(data) != original) <= MAX_BITS, name


def test_different_lesions_are_not_near_duplicates() -> None:
    hashes = np.stack([perceptual_hash(encode_image(draw(seed))) for seed in range(60)])

    assert len(near_duplicates(hashes)) == 0


def test_pairs_are_found_up_to_the_threshold_and_not_beyond_it() -> None:
    # Given more images than are compared at once, one of them repeated at the threshold and one just beyond it
    hashes = np.random.default_rng(0).random((2300, BITS)) < 0.5
    hashes[2000], hashes[2100] = hashes[5], hashes[1500]
    hashes[2000, :MAX_BITS] ^= True
    hashes[2100, : MAX_BITS + 1] ^= True

    assert near_duplicates(hashes).tolist() == [[5, 2000]]


def test_the_images_of_a_data_folder_are_hashed_in_the_order_of_its_rows(tmp_path: Path) -> None:
    synthesize_archive(tmp_path, images=5, broken=0, seed=0)
    rows = read_labels(tmp_path)

    hashes = hash_images(rows)

    assert hashes.shape == (5, BITS)
    assert (hashes[3] == perceptual_hash((tmp_path / rows[3].path).read_bytes())).all()
