"""What a training run learns from, and that it stays what it was."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from db.labels import LabelRow, add_labels
from db.tables import CLASSES
from model.dataset import METADATA_FILE
from model.errors import TrainingDataError
from model.splits import in_gate_set
from tests.labelled import LESIONS, draw_labelled
from worker.settings import WorkerSettings
from worker.training_data import DATA_FILE, freeze_data, read_gate_set

if TYPE_CHECKING:
    from db.batches import ItemRow
    from tests.archive import Archive

IMAGES = 140


def diagnose(archive: Archive, batch: int, rows: list[ItemRow], *, shift: int = 0, dx_type: str = "histo") -> None:
    """Confirm a diagnosis of each image, in turn."""
    labels = [
        LabelRow(
            line=number,
            image_id=str(row.image_id),
            dx=CLASSES[(number + shift) % len(CLASSES)],
            dx_type=dx_type,
            labelled_by="somebody",
            labelled_on="2026-01-31",
        )
        for number, row in enumerate(rows)
    ]
    assert add_labels(archive.engine, batch, labels, "me").problems == ()


def screened(archive: Archive) -> tuple[int, list[ItemRow]]:
    """Open a batch of named images, and note what a worker read of each."""
    rows = [replace(row, image_id=str(row.path).partition(".")[0]) for row in archive.draw(IMAGES)]
    batch = archive.load(rows)
    with archive.engine.begin() as connection:
        for row in rows:
            digest = hashlib.sha256((archive.root / str(row.path)).read_bytes()).hexdigest()
            connection.execute(
                text("UPDATE item SET image_digest = :d WHERE batch_id = :b AND path = :p"),
                {"d": digest, "b": batch, "p": row.path},
            )
    return batch, rows


def test_confirmed_diagnoses_are_learned_from_and_stay_what_they_were(archive: Archive, tmp_path: Path) -> None:
    # Given an archive with confirmed diagnoses, of which a run has frozen its data set
    batch, rows = screened(archive)
    diagnose(archive, batch, rows[:-7], dx_type="consensus")
    settings = WorkerSettings()
    first = freeze_data(archive.engine, settings, None, tmp_path)
    assert len(first.rows) == IMAGES - 7
    assert first.left_out == {"conflicting": 0, "unread": 0}

    # If more come, and better founded ones that say otherwise
    diagnose(archive, batch, rows, shift=1)

    # Then the run learns what it had learned, and a new one learns what is known now
    again = freeze_data(archive.engine, settings, None, tmp_path)
    assert again.rows == first.rows
    assert again.digest == first.digest
    (tmp_path / "new").mkdir()
    later = freeze_data(archive.engine, settings, None, tmp_path / "new")
    assert len(later.rows) == IMAGES
    assert later.digest != first.digest
    # And what is on disk names no file
    with (tmp_path / DATA_FILE).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(first.rows)
    assert "png" not in (tmp_path / DATA_FILE).read_text(encoding="utf-8")
    assert {line["fold"] for line in lines} == {"gate", *map(str, range(5))}
    assert (tmp_path / DATA_FILE).stat().st_mode & 0o077 == 0


def test_images_that_changed_or_went_are_left_out_and_an_erased_one_ends_a_run_that_knew_it(
    archive: Archive, tmp_path: Path
) -> None:
    # Given labelled images of which one has other bytes by now and one is gone
    batch, rows = screened(archive)
    diagnose(archive, batch, rows)
    other = archive.root / str(rows[0].path)
    other.write_bytes((archive.root / str(rows[1].path)).read_bytes())
    (archive.root / str(rows[2].path)).unlink()

    # If a run freezes its data set
    settings = WorkerSettings()
    frozen = freeze_data(archive.engine, settings, None, tmp_path)

    # Then it is without both
    assert len(frozen.rows) == IMAGES - 2
    assert frozen.left_out == {"conflicting": 0, "unread": 0, "changed_since_screened": 1, "missing_image": 1}
    # And where one of the others goes, the run cannot go on as what it was
    (archive.root / str(rows[3].path)).unlink()
    with pytest.raises(TrainingDataError, match="queue a new run"):
        freeze_data(archive.engine, settings, None, tmp_path)


def test_too_little_of_a_class_is_said(archive: Archive, tmp_path: Path) -> None:
    batch, rows = screened(archive)
    diagnose(archive, batch, rows[:69])

    with pytest.raises(TrainingDataError, match=r"too few lesions of vasc \(9\): a model needs 10 of each"):
        freeze_data(archive.engine, WorkerSettings(), None, tmp_path)

    assert not (tmp_path / DATA_FILE).exists()


def test_a_folder_is_read_where_it_can_be_and_an_archive_where_this_host_has_it(
    archive: Archive, tmp_path: Path
) -> None:
    # Given a data folder with one broken image
    folder = tmp_path / "data"
    draw_labelled(folder)
    (folder / "nv-3.jpg").write_bytes(b"")
    frozen = freeze_data(archive.engine, WorkerSettings(), str(folder), tmp_path)
    assert frozen.left_out == {"empty_file": 1}
    # And an archive that is mounted nowhere here
    batch, rows = screened(archive)
    diagnose(archive, batch, rows)
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET source = 'elsewhere'"))

    # Then each says what is missing
    with pytest.raises(TrainingDataError, match="not there"):
        freeze_data(archive.engine, WorkerSettings(), str(tmp_path / "none"), tmp_path)
    with pytest.raises(TrainingDataError, match="too few lesions"):
        freeze_data(archive.engine, WorkerSettings(), None, tmp_path / "x")
    mapped = WorkerSettings(archive_roots={"elsewhere": str(archive.root)})
    (tmp_path / "y").mkdir()
    assert len(freeze_data(archive.engine, mapped, None, tmp_path / "y").rows) == IMAGES


@pytest.mark.parametrize("anew", [False, True])
def test_the_gate_sets_images_are_not_learned_from_whatever_their_lesions_are_called(
    archive: Archive, tmp_path: Path, *, anew: bool
) -> None:
    # Given a data folder that holds images of the gate set under names of its own, perhaps with other bytes
    draw_labelled(tmp_path / "judge")
    settings = WorkerSettings(gate_data=tmp_path / "judge")
    gate_set = read_gate_set(settings)
    assert gate_set
    draw_labelled(tmp_path / "data")
    table = tmp_path / "data" / METADATA_FILE
    table.write_text(table.read_text(encoding="utf-8").replace("lesion-", "other-"), encoding="utf-8")
    for path in (tmp_path / "data").glob("*.jpg") if anew else ():
        data = path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xfe\x00\x05new" + data[2:])

    # If it is frozen
    frozen = freeze_data(archive.engine, settings, str(tmp_path / "data"), tmp_path, gate_set)

    # Then none of what is learned from is one of them
    learned = {Path(row.path).name for row in frozen.rows if not in_gate_set(row.lesion_id)}
    assert not learned & {Path(row.path).name for row in gate_set}
    assert frozen.left_out["in_gate_set"] > 0
    assert len(frozen.rows) + frozen.left_out["in_gate_set"] == 7 * LESIONS
