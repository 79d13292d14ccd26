"""Our figures against the ISIC challenge's own scorer, `isic-challenge-scoring`, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.labels import CLASSES
from model.metrics import balanced_accuracy, confusion_matrix, mean_over_classes, roc_area

#: The scorer and what it asks for that we do not have: it does not run with our pandas 3. NumPy, SciPy and scikit-learn
#: are this environment's. 13 MB; the hashes of pandas are those of Python 3.11 to 3.13 on x86-64 and ARM.
REQUIREMENTS = """\
isic-challenge-scoring==5.6.0 --hash=sha256:9fd7296892b831a2bf2692041d9936ac23dab96bd80458275d0ddaade07dae89
rdp==0.8 --hash=sha256:19ec92f0803587891a00b439441e5e23fc9410500983f02941e4cf9ac3113e4b
pytz==2025.2 --hash=sha256:5ddf76296dd8c44c26eb8f4b6f35488f3ccbf6fbbd7adee0b7262d43f0ec2f00
pandas==2.3.3 \\
    --hash=sha256:b98560e98cb334799c0b07ca7967ac361a47326e9b4e5a7dfb5ab2b1c9d35a1b \\
    --hash=sha256:b468d3dad6ff947df92dcb32ede5b7bd41a9b3cceef0a30ed925f6d01fb8fa66 \\
    --hash=sha256:b3d11d2fda7eb164ef27ffc14b4fcab16a80e1ce67e9f57e19ec0afaf715ba89 \\
    --hash=sha256:ecaf1e12bdc03c86ad4a7ea848d66c685cb6851d807a26aa245ca3d2017a1908 \\
    --hash=sha256:318d77e0e42a628c04dc56bcef4b40de67918f7041c2b061af1da41dcff670ac \\
    --hash=sha256:e32e7cc9af0f1cc15548288a51a3b681cc2a219faa838e995f7dc53dbab1062d
"""
#: Runs there. A C extension for archives of segmentations is left out: the package imports it and classification never
#: calls it.
SCORE = """\
import json, pathlib, sys, zipfile
sys.modules["zipfile_deflate64"] = zipfile
import pandas
from isic_challenge_scoring import ClassificationMetric, ClassificationScore
truth, said = map(pathlib.Path, sys.argv[1:])
score = ClassificationScore.from_file(truth, said, ClassificationMetric.BALANCED_ACCURACY)
print(json.dumps({"pandas": pandas.__version__, "overall": score.overall, "auc": score.macro_average["auc"]}))
"""


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the scorer beside our environment; without a package index this is skipped, or fails where CI asks."""
    folder = tmp_path_factory.mktemp("isic")
    wanted = folder / "requirements.txt"
    wanted.write_text(REQUIREMENTS, encoding="utf-8")
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--require-hashes"]
    asked: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        "--target",
        folder / "packages",
        "-r",
        wanted,
    ]
    installed = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        told = f"isic-challenge-scoring cannot be installed: our figures were NOT held against it\n{installed.stderr}"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return folder / "packages"


def write_csv(path: Path, values: NDArray[np.float64]) -> Path:
    """Write the challenge's CSV: an image and seven columns."""
    lines = [",".join(("image", *(name.upper() for name in CLASSES)))]
    lines += [",".join((f"image_{number:05d}", *map(repr, row))) for number, row in enumerate(values.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("images", "sharpness"), [(60, 0.5), (2000, 1.0), (2000, 3.0)])
def test_macro_recall_and_auc_are_the_challenges_own(
    scorer: Path, tmp_path: Path, images: int, sharpness: float
) -> None:
    # Given images as HAM10000 has them, every class among them, and a model that is right more or less often
    generator = np.random.default_rng(images)
    frequencies = np.array([327, 514, 1099, 115, 1113, 6705, 142]) / 10015
    labels = np.concatenate([np.arange(7), generator.choice(7, images - 7, p=frequencies)])
    logits = generator.normal(size=(images, 7)) + sharpness * np.eye(7)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    # If the challenge's scorer judges it
    files = [write_csv(tmp_path / "truth.csv", np.eye(7)[labels]), write_csv(tmp_path / "said.csv", probabilities)]
    ran = subprocess.run(
        [sys.executable, "-c", SCORE, *files],
        env={**os.environ, "PYTHONPATH": str(scorer), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    theirs = json.loads(ran.stdout)

    # Then it says what we say
    matrix = confusion_matrix(labels, np.argmax(probabilities, axis=1))
    areas = np.array([roc_area(probabilities[:, index], labels == index) for index in range(7)])
    assert theirs["pandas"] == "2.3.3"
    assert theirs["overall"] == pytest.approx(balanced_accuracy(matrix), abs=1e-4)
    assert theirs["auc"] == pytest.approx(mean_over_classes(areas), abs=1e-4)
