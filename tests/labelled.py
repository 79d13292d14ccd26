"""A data folder in HAM10000's layout whose diagnoses a small network learns in an epoch: each has its brightness."""

import csv
from pathlib import Path

import numpy as np

from model.dataset import METADATA_FILE
from model.images import encode_image
from model.labels import CLASSES

#: Lesions of each class, of which about a tenth belongs to the gate set.
LESIONS = 24


def draw_labelled(folder: Path, *, lesions: int = LESIONS) -> None:
    """Draw one image of each lesion, and its row of the table."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    with (folder / METADATA_FILE).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"))
        table.writeheader()
        for label, dx in enumerate(CLASSES):
            for number in range(lesions):
                name = f"{dx}-{number}"
                pixels = 20 + 30 * label + generator.integers(0, 20, (16, 16, 3))
                (folder / f"{name}.jpg").write_bytes(encode_image(pixels.astype(np.uint8), "JPEG"))
                row = {"lesion_id": f"lesion-{name}", "image_id": name, "dx": dx, "dx_type": "histo"}
                table.writerow({**row, "age": 50, "sex": "male", "localization": "back"})
