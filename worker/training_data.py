"""What a training run learns from: frozen at its first attempt, and the same at every later one."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from sqlalchemy import Engine

from db.errors import SettingsError
from db.labels import ConfirmedImage, confirmed_images
from model.dataset import (
    CACHED_SIZE,
    THREADS,
    LabelledImage,
    insist_on_classes,
    name_frame,
    name_image,
    read_image,
    read_labels,
)
from model.duplicates import hash_images, near_duplicates
from model.errors import RejectedImage, TrainingDataError
from model.images import ObjectRoot, decode_image
from model.labels import CLASSES
from model.metadata import PatientMetadata
from model.splits import assign_folds, in_gate_set
from worker.settings import WorkerSettings

#: The frozen data set in the run's folder: what the images are, and nothing that names a patient or a file.
DATA_FILE: Final = "data.csv"
_COLUMNS: Final = ("image_sha256", "lesion_sha256", "dx", "dx_type", "fold")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenData:
    """What a run learns from and is judged on.

    Attributes:
        rows: The images, gate set included.
        left_out: Images that cannot be learned from, by reason.
    """

    rows: tuple[LabelledImage, ...]
    left_out: dict[str, int]

    @property
    def digest(self) -> str:
        """sha256 over the sorted (image, lesion, diagnosis)."""
        lines = sorted(f"{row.image_id} {row.lesion_id} {CLASSES[row.label]}" for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_gate_set(settings: WorkerSettings) -> tuple[LabelledImage, ...] | None:
    """Read the gate set that judges every candidate; images are named by their bytes.

    Args:
        settings: `gate_data` names its folder.

    Returns:
        Its images, or None where no folder is set.

    Raises:
        TrainingDataError: If the folder cannot be used, or an image cannot be read.
    """
    if settings.gate_data is None:
        return None
    rows = [row for row in _of_folder(settings.gate_data) if in_gate_set(row.lesion_id)]
    with ThreadPoolExecutor(max_workers=THREADS) as threads:
        checked = list(threads.map(partial(_check, by_digest=False), rows))
    sound = tuple(row for row in checked if not isinstance(row, str))
    if not sound or len(sound) < len(checked):
        raise TrainingDataError("WORKER_GATE_DATA has no gate set, or images of it that cannot be read.")
    return sound


def freeze_data(
    engine: Engine,
    settings: WorkerSettings,
    source: str | None,
    folder: Path,
    gate_set: Sequence[LabelledImage] = (),
) -> FrozenData:
    """Read a run's data set, the one that its folder names where it names one.

    Images are named by their bytes: `image_id` of each row is the sha256 of its file.

    Args:
        engine: The ledger.
        settings: Where this host has the archives.
        source: A folder in HAM10000's layout; None takes the ledger's confirmed diagnoses.
        folder: The run's.
        gate_set: Images that no model may learn from, whatever their lesions are called here.

    Returns:
        The data set.

    Raises:
        TrainingDataError: If the source cannot be used, what was frozen is not there any more, or there is too little
            of a class.
    """
    rows, left_out = _of_ledger(engine, settings) if source is None else (_of_folder(Path(source)), Counter())
    sound = []
    with ThreadPoolExecutor(max_workers=THREADS) as threads:
        for checked in threads.map(partial(_check, by_digest=source is None), rows):
            if isinstance(checked, str):
                left_out[checked] += 1
            else:
                sound.append(checked)
    sound, known = _without(sound, gate_set)
    if known:
        left_out["in_gate_set"] += known
    frozen = folder / DATA_FILE
    if frozen.exists():
        sound = _thaw(frozen, sound)
        left_out = Counter()
    insist_on_classes(sound)
    if not frozen.exists():
        _write(frozen, sound)
    return FrozenData(rows=tuple(sound), left_out=dict(left_out))


def _of_folder(folder: Path) -> list[LabelledImage]:
    if not folder.is_dir():
        raise TrainingDataError("The data folder is not there on the training worker's host.")
    return read_labels(folder)


def _of_ledger(engine: Engine, settings: WorkerSettings) -> tuple[list[LabelledImage], Counter[str]]:
    confirmed = confirmed_images(engine)
    left_out = Counter({"conflicting": len(confirmed.conflicting), "unread": confirmed.unread})
    rows = []
    for image in confirmed.images:
        root = _find_root(settings, image.source)
        if root is None:
            left_out["archive_not_mapped"] += 1
        else:
            rows.append(_row(image, root))
    return rows, left_out


def _find_root(settings: WorkerSettings, source: str) -> Path | ObjectRoot | None:
    try:
        return settings.archive_root(source)
    except SettingsError:
        return None


def _row(image: ConfirmedImage, root: Path | ObjectRoot) -> LabelledImage:
    return LabelledImage(
        root=root,
        path=image.path,
        image_id=name_frame(image.image_digest, image.frame),
        frame=image.frame,
        # Without a name for the lesion nothing says that another image shows it too.
        lesion_id=image.lesion_id or name_frame(image.image_digest, image.frame),
        label=CLASSES.index(image.dx),
        patient=PatientMetadata(age=image.age, sex=image.sex, localization=image.localization),
        dx_type=image.dx_type,
    )


def _check(row: LabelledImage, *, by_digest: bool) -> LabelledImage | str:
    """Name an image by its bytes, or say why it cannot be learned from."""
    try:
        data = read_image(row)
        decode_image(data, CACHED_SIZE, row.frame)
    except RejectedImage as rejected:
        return rejected.reason.value
    digest = name_image(data, row.frame)
    if by_digest and digest != row.image_id:
        return "changed_since_screened"
    return replace(row, image_id=digest)


def _without(rows: list[LabelledImage], gate_set: Sequence[LabelledImage]) -> tuple[list[LabelledImage], int]:
    """Take images of the gate set out, also where they are encoded anew, with all images of their lesions."""
    alike = near_duplicates(hash_images([*gate_set, *rows])) if gate_set else ()
    lesions = {rows[other - len(gate_set)].lesion_id for one, other in alike if one < len(gate_set) <= other}
    kept = [row for row in rows if row.lesion_id not in lesions or in_gate_set(row.lesion_id)]
    return kept, len(rows) - len(kept)


def _write(path: Path, rows: Sequence[LabelledImage]) -> None:
    folds = assign_folds([row.lesion_id for row in rows], np.array([row.label for row in rows]))
    temporary = path.with_suffix(".partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        os.fchmod(file.fileno(), 0o600)
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row, fold in zip(rows, folds, strict=True):
            name = "gate" if fold < 0 else str(fold)
            writer.writerow((row.image_id, _hashed(row.lesion_id), CLASSES[row.label], row.dx_type, name))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _thaw(path: Path, rows: Iterable[LabelledImage]) -> list[LabelledImage]:
    """Choose the frozen images, with the diagnoses that they had; others may have come since."""
    known = {(row.image_id, _hashed(row.lesion_id)): row for row in rows}
    with path.open(encoding="utf-8", newline="") as file:
        frozen = list(csv.DictReader(file))
    try:
        chosen = [known[line["image_sha256"], line["lesion_sha256"]] for line in frozen]
    except KeyError:
        raise TrainingDataError(
            "Images that this run learns from are erased, moved away or contradicted by now: queue a new run."
        ) from None
    return [
        replace(row, label=CLASSES.index(line["dx"]), dx_type=line["dx_type"])
        for row, line in zip(chosen, frozen, strict=True)
    ]


def _hashed(lesion_id: str) -> str:
    return hashlib.sha256(lesion_id.encode("utf-8", "surrogatepass")).hexdigest()
