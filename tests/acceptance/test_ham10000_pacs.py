"""Real images in a real PACS: screened through it as from a folder, and the reports stored back."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from model.dataset import METADATA_FILE
from tests.dicoms import DERMOSCOPY, code, make_dicom
from tests.orthanc import Orthanc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.acceptance.conftest import Screen

pytestmark = pytest.mark.shared

OBJECTS: Final = 500
#: Pixels that are the JPEG file's own, encapsulated or decoded; the last one changes them a little.
SYNTAXES: Final = ("jpeg", "explicit", "implicit", "rle", "jpeg2000_lossless", "deflated", "big", "jpeg2000")
#: What JPEG 2000 at a fixed rate may change of a probability on average; a tenth of it is usual.
LOSSY: Final = 0.02
#: HAM10000's sites in SNOMED CT; what it calls unknown has none.
SITES: Final = {
    "abdomen": "818981001",
    "acral": "70887009",
    "back": "77568009",
    "chest": "51185008",
    "ear": "117590005",
    "face": "89545001",
    "foot": "56459004",
    "genital": "45292006",
    "hand": "85562004",
    "lower extremity": "61685007",
    "neck": "45048000",
    "scalp": "41695006",
    "trunk": "22943007",
    "upper extremity": "53120007",
}
SEXES: Final = {"male": "M", "female": "F"}


@pytest.fixture
def orthanc() -> Iterator[Orthanc]:
    pacs = Orthanc.prepare()
    try:
        pacs.start()
        yield pacs
    finally:
        pacs.remove()


def test_ham10000_in_a_pacs_is_screened_as_in_a_folder_and_reported_back(
    screen: Screen, orthanc: Orthanc, ham10000: Path, tmp_path: Path
) -> None:
    # Given five hundred images in HAM10000's layout, and in a PACS as objects of eight syntaxes
    with (ham10000 / METADATA_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))[:: 10_015 // OBJECTS][:OBJECTS]
    folder = tmp_path / "archive"
    names = {}
    for number, row in enumerate(rows):
        path = next(ham10000.glob(f"HAM10000_images_part_?/{row['image_id']}.jpg"))
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.name)
        names[orthanc_uid(number)] = row["image_id"], SYNTAXES[number % len(SYNTAXES)]
    with (folder / METADATA_FILE).open("w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    orthanc.store(make_object(number, row, folder) for number, row in enumerate(rows))
    assert orthanc.count() == OBJECTS

    # If both are screened
    plain = screen.report("run", folder, "--out", tmp_path / "plain")
    screen.environment.update(orthanc.settings)
    pulled = screen.report("run", orthanc.address("Modality=XC"), "--out", tmp_path / "pulled")

    # Then every object has a verdict, and it is the file's: to the last digit unless pixels were changed
    assert pulled["found"] == pulled["done"] + pulled["referred"] == plain["found"] == OBJECTS
    assert screen.sound(pulled["batch"])
    expected = {row["image_id"]: row for row in verdicts(screen, plain["batch"])}
    found = verdicts(screen, pulled["batch"])
    gaps: dict[str, list[float]] = {}
    for row in found:
        image_id, syntax = names[row["instance_uid"]]
        gap = np.abs(np.subtract(row["probabilities"], expected[image_id]["probabilities"])).max()
        gaps.setdefault(syntax, []).append(float(gap))
    assert Counter({syntax: len(some) for syntax, some in gaps.items()}) == Counter(
        syntax for _, syntax in names.values()
    )
    lossy = gaps.pop("jpeg2000")
    # Batches may be put together otherwise, which moves the last bits of a float32 sum.
    assert max(max(some) for some in gaps.values()) < 1e-5
    assert np.mean(lossy) < LOSSY

    # And a report on each is stored back
    screen("dicom", pulled["batch"], "--send", orthanc.address())
    assert orthanc.count() == 2 * OBJECTS


def orthanc_uid(number: int) -> str:
    return f"2.25.7.{number}"


def make_object(number: int, row: dict[str, str], folder: Path) -> bytes:
    """Make the object of an image, with its patient in the headers."""
    data = (folder / f"{row['image_id']}.jpg").read_bytes()
    syntax = SYNTAXES[number % len(SYNTAXES)]
    headers: dict[str, Any] = {}
    if row["age"]:
        headers["PatientAge"] = f"{int(float(row['age'])):03d}Y"
    if row["sex"] in SEXES:
        headers["PatientSex"] = SEXES[row["sex"]]
    if row["localization"] in SITES:
        headers["AnatomicRegionSequence"] = [code("SCT", SITES[row["localization"]], row["localization"])]
    return make_dicom(
        np.asarray(Image.open(io.BytesIO(data))),
        syntax,
        # The very file, as a camera's object holds it.
        encoded=[data] if syntax == "jpeg" else None,
        photometric="YBR_FULL_422" if syntax == "jpeg" else "RGB",
        sop_class=DERMOSCOPY,
        StudyInstanceUID=f"2.25.5.{row['lesion_id'].removeprefix('HAM_').lstrip('0')}",
        SeriesInstanceUID=f"2.25.6.{row['lesion_id'].removeprefix('HAM_').lstrip('0')}",
        SOPInstanceUID=orthanc_uid(number),
        **headers,
    )


def verdicts(screen: Screen, batch: int) -> list[dict[str, Any]]:
    """Read a batch's items and what was said of them."""
    engine = screen.ledger()
    wanted = "i.image_id, i.instance_uid, r.p_akiec, r.p_bcc, r.p_bkl, r.p_df, r.p_mel, r.p_nv, r.p_vasc"
    query = (
        f"SELECT {wanted} FROM item i JOIN batch b ON b.id = i.batch_id JOIN result r "  # noqa: S608 - of constants
        "ON r.input_digest = i.input_digest AND r.model_digest = b.model_digest WHERE i.batch_id = :batch"
    )
    try:
        with engine.connect() as connection:
            rows = connection.execute(text(query), {"batch": batch}).all()
    finally:
        engine.dispose()
    return [{"image_id": row[0], "instance_uid": row[1], "probabilities": row[2:]} for row in rows]
