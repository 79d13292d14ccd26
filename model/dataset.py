"""Labelled images for training, read from a folder in HAM10000's layout."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.errors import TrainingDataError
from model.images import ObjectRoot, decode_image, read_image_bytes
from model.labels import CLASSES
from model.metadata import PatientMetadata
from model.splits import FOLDS

METADATA_FILE: Final = "HAM10000_metadata.csv"
#: What its first line must name, in any order; `dx_type` may be there too.
_COLUMNS: Final = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
#: Width and height images are kept at while training: small enough for memory, larger than any crop needs.
CACHED_SIZE: Final = (300, 225)
MAX_IMAGE_BYTES: Final = 50 * 2**20
THREADS: Final = 4
#: Lesions of each class that a model is trained and judged with: two in each fold, fewer by what is in the gate set.
LEAST_OF_A_CLASS: Final = 2 * FOLDS


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """One labelled image.

    Attributes:
        root: Folder, or place on object storage, that `path` must not leave.
        path: Relative to the root.
        image_id: Name of the image.
        lesion_id: Lesion it shows; several images may show one.
        label: Index in `CLASSES`.
        patient: Age, sex and site.
        dx_type: How the diagnosis was made ("histo", "follow_up", "consensus", "confocal"), or "" where nothing says.
        frame: Which frame of a DICOM object, from 1; None where it has but one.
    """

    root: Path | ObjectRoot
    path: str
    image_id: str
    lesion_id: str
    label: int
    patient: PatientMetadata
    dx_type: str = ""
    frame: int | None = None


def read_labels(folder: Path) -> list[LabelledImage]:
    """Read the metadata file and find each image.

    Raises:
        TrainingDataError: Without a metadata file, or one that lacks a column, is not UTF-8 or is cut off; without an
            image; or with an unknown diagnosis.
    """
    table = folder / METADATA_FILE
    if not table.is_file():
        raise TrainingDataError(f"No {METADATA_FILE} in the data folder: give the folder HAM10000 was unpacked into.")
    lines = csv.DictReader(io.StringIO(_read_text(table), newline=""))
    try:
        missing = [name for name in _COLUMNS if name not in (lines.fieldnames or ())]
        if missing:
            raise TrainingDataError(
                f"The first line of {METADATA_FILE} has no column {', '.join(missing)}: name the columns there, with "
                "commas between them."
            )
        files = {path.stem: path for path in folder.rglob("*.jpg")}
        return [_read_row(folder, files, number, row) for number, row in enumerate(lines, start=2)]
    except csv.Error:
        raise TrainingDataError(
            f"Line {lines.reader.line_num} of {METADATA_FILE} cannot be read as CSV: look for a quotation mark that no "
            "other one closes."
        ) from None


def _read_text(table: Path) -> str:
    data = table.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TrainingDataError(f"Line {line} of {METADATA_FILE} is not UTF-8: save the table as UTF-8.") from None


def _read_row(folder: Path, files: dict[str, Path], number: int, row: dict[str, str | None]) -> LabelledImage:
    found = {name: value for name in _COLUMNS if (value := row[name]) is not None}
    if len(found) < len(_COLUMNS):
        raise TrainingDataError(f"Line {number} of {METADATA_FILE} has fewer fields than the first: mend the line.")
    if found["dx"] not in CLASSES:
        raise TrainingDataError(f"Line {number} of {METADATA_FILE} has a diagnosis that is not one of {CLASSES}.")
    if found["image_id"] not in files:
        raise TrainingDataError(f"Line {number} of {METADATA_FILE} names an image that is not in the data folder.")
    try:
        age: float | None = float(found["age"])
    except ValueError:
        age = None
    return LabelledImage(
        root=folder,
        path=files[found["image_id"]].relative_to(folder).as_posix(),
        image_id=found["image_id"],
        lesion_id=found["lesion_id"],
        label=CLASSES.index(found["dx"]),
        patient=PatientMetadata(age=age, sex=found["sex"], localization=found["localization"]),
        dx_type=row.get("dx_type") or "",
    )


def insist_on_classes(rows: Sequence[LabelledImage]) -> None:
    """Refuse images of which no model can be trained and judged, before hours are spent on it.

    Raises:
        TrainingDataError: A class has fewer than `LEAST_OF_A_CLASS` lesions.
    """
    counts = Counter(label for _, label in {(row.lesion_id, row.label) for row in rows})
    scarce = [f"{name} ({counts[index]})" for index, name in enumerate(CLASSES) if counts[index] < LEAST_OF_A_CLASS]
    if scarce:
        raise TrainingDataError(
            f"There are too few lesions of {', '.join(scarce)}: a model needs {LEAST_OF_A_CLASS} of each class to be "
            "trained and judged on others. Label more, or train on a data folder that has them."
        )


def load_images(rows: Sequence[LabelledImage], size: tuple[int, int] = CACHED_SIZE) -> NDArray[np.uint8]:
    """Decode every image once.

    Args:
        rows: What to read.
        size: Width and height in pixels.

    Returns:
        `(n, height, width, 3)` uint8.

    Raises:
        RejectedImage: An image cannot be read; training wants all of them.
    """
    images = np.empty((len(rows), size[1], size[0], 3), np.uint8)

    def load(index: int) -> None:
        images[index] = decode_image(read_image(rows[index]), size, rows[index].frame)

    with ThreadPoolExecutor(max_workers=THREADS) as threads:
        list(threads.map(load, range(len(rows))))
    return images


def digest_data(rows: Sequence[LabelledImage]) -> str:
    """Name a data set by its content: sha256 over the sorted (image sha256, lesion, label).

    Raises:
        RejectedImage: An image cannot be read.
    """

    def line(row: LabelledImage) -> str:
        return f"{name_image(read_image(row), row.frame)} {row.lesion_id} {CLASSES[row.label]}"

    with ThreadPoolExecutor(max_workers=THREADS) as threads:
        lines = sorted(threads.map(line, rows))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def name_image(data: bytes, frame: int | None) -> str:
    """Name an image by its content: the file's sha256, and the frame where it is one of several."""
    return name_frame(hashlib.sha256(data).hexdigest(), frame)


def name_frame(image_digest: str, frame: int | None) -> str:
    """Name an image by its file's sha256, hexadecimal, and the frame where it is one of several."""
    return image_digest if frame is None else f"{image_digest}#{frame}"


def read_image(row: LabelledImage) -> bytes:
    """Read an image's file.

    Raises:
        RejectedImage: It cannot be read.
    """
    return read_image_bytes(row.root, row.path, max_bytes=MAX_IMAGE_BYTES)
