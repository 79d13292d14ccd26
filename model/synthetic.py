"""Draws a synthetic archive: dermoscopy-like images with metadata, and some files that are broken on purpose."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError
from model.images import encode_image
from model.labels import CLASSES

HEIGHT: Final = 300
WIDTH: Final = 400
IMAGES_FOLDER: Final = "HAM10000_images_part_1"
EXPECTED_FILE: Final = "expected.json"
#: Share of rows without an age: more than HAM10000's 57 of 10 015, to be seen in a small archive.
NO_AGE: Final = 0.05
SITES: Final = ("back", "lower extremity", "trunk", "face", "chest", "upper extremity", "abdomen", "unknown")

NOTICE: Final = """These images are synthetic: drawn by `lesion-model synthesize`, of no patient, of no use in
diagnosis. Some files are broken on purpose, to show what becomes of them. `expected.json` states how many.
"""


class FolderInUseError(ModelError):
    """The folder to draw into is not empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticArchive:
    """What an archive holds, in the terms of a screening's counts.

    Attributes:
        found: Items a screening finds, rows without an image included.
        rejected: How many of them cannot be scored, by reason.
    """

    found: int
    rejected: dict[str, int]


def draw_lesion(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one lesion on skin, with an irregular border, a pigment network, hairs, a vignette and skin's grain.

    Returns:
        `(300, 400, 3)` uint8 RGB.
    """
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    skin = _between(generator, (190, 140, 120), (235, 190, 170))
    slope = generator.uniform(-0.08, 0.08, 2)
    shade = 1 + slope[0] * (rows / HEIGHT - 0.5) + slope[1] * (columns / WIDTH - 0.5)
    image = skin * shade[..., None]
    inside = _lesion_mask(generator, rows, columns)
    pigment = _between(generator, (60, 30, 20), (150, 95, 80))
    angle = generator.uniform(0, np.pi)
    wave = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) / 5) * np.sin(
        (columns * np.cos(angle) - rows * np.sin(angle)) / 5
    )
    lesion = pigment * (1 + 0.15 * generator.uniform(0, 1) * wave[..., None])
    image = image * (1 - inside[..., None]) + lesion * inside[..., None]
    for _ in range(int(generator.integers(0, 6))):
        image *= _hair(generator, rows, columns)[..., None]
    distance = np.hypot((rows / HEIGHT - 0.5), (columns / WIDTH - 0.5))
    image *= np.clip(1.25 - 0.9 * distance**2, 0, 1)[..., None]
    image += 4 * _grain(generator)[..., None] + generator.normal(0, 1, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _grain(generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw texture of mean 0 and deviation 1 with what natural images have of each frequency f: 1 / f (Field 1987).

    Without it drawings are to a network what text is: nothing like skin.
    """
    frequencies = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequencies[0, 0] = np.inf
    grain = np.fft.irfft2(np.fft.rfft2(generator.normal(0, 1, (HEIGHT, WIDTH))) / frequencies, (HEIGHT, WIDTH))
    return np.asarray(grain / grain.std())


def _between(
    generator: np.random.Generator, dark: tuple[int, int, int], light: tuple[int, int, int]
) -> NDArray[np.float64]:
    # One step for all channels, and a little for each: skin and pigment vary in lightness more than in hue.
    step = generator.uniform(0, 1) + generator.uniform(-0.1, 0.1, 3)
    return np.asarray(dark) + step * (np.asarray(light) - np.asarray(dark))


def _lesion_mask(
    generator: np.random.Generator, rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float64]:
    centre = generator.uniform([HEIGHT * 0.4, WIDTH * 0.4], [HEIGHT * 0.6, WIDTH * 0.6])
    radius = generator.uniform(45, 105)
    angle = np.arctan2(rows - centre[0], columns - centre[1])
    border = np.full(rows.shape, radius, np.float64)
    for harmonic in range(2, 7):
        border += radius * generator.uniform(0, 0.28) / harmonic * np.cos(harmonic * angle + generator.uniform(0, 6.3))
    softness = generator.uniform(4, 14)
    gap = (np.hypot(rows - centre[0], columns - centre[1]) - border) / softness
    return np.asarray(1 / (1 + np.exp(np.clip(gap, -30, 30))))


def _hair(
    generator: np.random.Generator, rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float64]:
    angle, offset = generator.uniform(0, np.pi), generator.uniform(-120, 120)
    bend = generator.uniform(-0.0015, 0.0015)
    along = (rows - HEIGHT / 2) * np.cos(angle) + (columns - WIDTH / 2) * np.sin(angle)
    across = (columns - WIDTH / 2) * np.cos(angle) - (rows - HEIGHT / 2) * np.sin(angle)
    return np.asarray(1 - 0.7 * np.exp(-(((across - offset - bend * along**2) / 1.4) ** 2)))


def synthesize_archive(folder: Path, *, images: int, broken: int, seed: int) -> SyntheticArchive:
    """Draw an archive in HAM10000's layout; the same arguments draw the same bytes.

    Args:
        folder: Where; must be absent or empty.
        images: Sound images.
        broken: Files and rows broken on purpose, of the kinds in turn. If any, the last sound image has no row.
        seed: Seed of every random choice.

    Raises:
        FolderInUseError: The folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FolderInUseError("The folder is not empty: name a new one, so that nothing of yours is overwritten.")
    pictures = folder / IMAGES_FOLDER
    pictures.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows: list[dict[str, str]] = []
    for number in range(images):
        name = f"SYNTH_{number:07d}"
        (pictures / f"{name}.jpg").write_bytes(encode_image(draw_lesion(generator)))
        row = _metadata_row(generator, name, lesion=number * 2 // 3)
        # A second image of a lesion shows the same diagnosis of the same patient.
        same = bool(rows) and rows[-1]["lesion_id"] == row["lesion_id"]
        rows.append({**rows[-1], "image_id": name} if same else row)
    if broken:
        # One sound image of which the table says nothing: real archives have some, and they are scored all the same.
        rows.pop()
    rejected: dict[str, int] = {}
    for number in range(broken):
        reason, content = _BROKEN[number % len(_BROKEN)]
        name = f"SYNTH_BROKEN_{number:03d}"
        if content is not None:
            (pictures / f"{name}.jpg").write_bytes(content(generator))
        rows.append(_metadata_row(generator, name, lesion=images + number))
        rejected[reason] = rejected.get(reason, 0) + 1
    _write_table(folder / "HAM10000_metadata.csv", rows)
    (folder / "README.txt").write_text(NOTICE, encoding="utf-8")
    archive = SyntheticArchive(found=images + broken, rejected=rejected)
    counts = {"found": archive.found, "rejected": sum(rejected.values()), "reasons": rejected}
    (folder / EXPECTED_FILE).write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return archive


def _truncated(generator: np.random.Generator) -> bytes:
    whole = encode_image(draw_lesion(generator))
    return whole[: len(whole) // 2]


#: Reason a screening gives, and what the file holds; None: a row without a file.
_BROKEN: Final[tuple[tuple[str, Callable[[np.random.Generator], bytes] | None], ...]] = (
    ("empty_file", lambda _: b""),
    ("truncated", _truncated),
    ("not_an_image", lambda _: b"<html><body>404 Not Found</body></html>\n"),
    ("unsupported_format", lambda generator: encode_image(draw_lesion(generator), "GIF")),
    ("missing_image", None),
)


def _metadata_row(generator: np.random.Generator, image_id: str, *, lesion: int) -> dict[str, str]:
    age = "" if generator.random() < NO_AGE else f"{5 * int(generator.integers(1, 18))}.0"
    return {
        "lesion_id": f"SYNTH_L{lesion:06d}",
        "image_id": image_id,
        "dx": CLASSES[int(generator.integers(0, len(CLASSES)))],
        "dx_type": "synthetic",
        "age": age,
        "sex": ("female", "male", "unknown")[int(generator.choice(3, p=[0.48, 0.48, 0.04]))],
        "localization": SITES[int(generator.integers(0, len(SITES)))],
    }


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    fields = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()
        table.writerows(rows)
