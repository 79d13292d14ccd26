"""Real images through the whole system: lesions the shipped model has not seen."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from model.dataset import METADATA_FILE, read_labels
from model.duplicates import hash_images, near_duplicates
from model.labels import CLASSES, MALIGNANT
from model.splits import assign_folds

if TYPE_CHECKING:
    from tests.acceptance.conftest import Screen

pytestmark = pytest.mark.shared


def test_held_out_lesions_are_ranked_with_the_malignant_ones_first(
    screen: Screen, ham10000: Path, tmp_path: Path
) -> None:
    # Given three hundred real images of lesions that were held out of training, in HAM10000's layout
    rows = read_labels(ham10000)
    folds = assign_folds([row.lesion_id for row in rows], np.array([row.label for row in rows]))
    held_out = [row for row, fold in zip(rows, folds, strict=True) if fold == 0][::6]
    archive = tmp_path / "archive"
    for row in held_out:
        (archive / row.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ham10000 / row.path, archive / row.path)
    wanted = {row.image_id for row in held_out}
    with (ham10000 / METADATA_FILE).open(newline="") as source, (archive / METADATA_FILE).open("w") as target:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(target, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(row for row in reader if row["image_id"] in wanted)

    # If they are screened
    report = screen.report("run", archive, "--out", tmp_path / "out")

    # Then all have a verdict, few are referred, and the malignant ones score higher
    assert report["found"] == report["done"] + report["referred"] == len(wanted)
    assert report["referred"] / report["found"] < 0.12
    assert screen.sound(report["batch"])
    truth = {row.image_id: CLASSES[row.label] in MALIGNANT for row in held_out}
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        results = list(csv.DictReader(file))
    scores = [float(row["malignant_score"]) for row in results]
    assert roc_auc_score([truth[row["image_id"]] for row in results], scores) > 0.85


def test_ham10000_holds_one_photograph_of_two_lesions(ham10000: Path) -> None:
    # Given the images of both lesions, and a few hundred others
    rows = read_labels(ham10000)
    twice = [row for row in rows if row.lesion_id in {"HAM_0000140", "HAM_0004919"}]
    chosen = [*twice, *(row for row in rows[::30] if row not in twice)]

    pairs = near_duplicates(hash_images(chosen))

    crossing = {frozenset(chosen[row].lesion_id for row in pair) for pair in pairs.tolist()}
    assert {pair for pair in crossing if len(pair) > 1} == {frozenset({"HAM_0000140", "HAM_0004919"})}
