"""The synthetic archive is the same each time, plainly named, and broken as stated."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from model.errors import RejectedImage
from model.images import decode_image
from model.synthetic import EXPECTED_FILE, IMAGES_FOLDER, FolderInUseError, synthesize_archive


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        synthesize_archive(tmp_path / name, images=3, broken=5, seed=4)

    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("one", "two")
    )
    assert one == two
    assert "synthetic" in one["README.txt"].decode()


def test_what_is_broken_is_rejected_for_the_stated_reason(tmp_path: Path) -> None:
    archive = synthesize_archive(tmp_path / "archive", images=2, broken=5, seed=0)

    reasons = {}
    for path in (tmp_path / "archive" / IMAGES_FOLDER).iterdir():
        data = path.read_bytes()
        try:
            assert decode_image(data, 32).shape == (32, 32, 3)
        except RejectedImage as rejected:
            reasons[rejected.reason.value if data else "empty_file"] = 1
    with (tmp_path / "archive" / "HAM10000_metadata.csv").open() as table:
        rows = list(csv.DictReader(table))
    files = {path.stem for path in (tmp_path / "archive" / IMAGES_FOLDER).iterdir()}
    reasons["missing_image"] = sum(row["image_id"] not in files for row in rows)

    assert reasons == archive.rejected
    # One sound image has no row, and is found all the same
    assert json.loads((tmp_path / "archive" / EXPECTED_FILE).read_text())["found"] == len(rows) + 1 == 7
    assert len([stem for stem in files if stem not in {row["image_id"] for row in rows}]) == 1


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(FolderInUseError, match="not empty"):
        synthesize_archive(tmp_path, images=1, broken=0, seed=0)
