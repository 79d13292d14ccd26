"""Archives of DICOM files, screened by real workers: from a folder and from object storage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import text

from db.pictures import scored_items
from model.images import encode_image
from producer.rehash import rehash_files
from tests.archive import Archive
from tests.dicoms import (
    MULTI_FRAME_TRUE_COLOUR,
    STRUCTURED_REPORT,
    SYNTAXES,
    code,
    encode_frame,
    make_dicom,
    make_headers,
    write_dicom,
)
from tests.light_classifier import LightClassifier
from tests.stack import Stack
from worker.rendering import _decode

if TYPE_CHECKING:
    from tests.objects import ObjectServer

COLOURS = {"jpeg": "YBR_FULL_422", "jpeg2000": "YBR_ICT", "jpeg2000_lossless": "YBR_RCT"}


def grey(brightness: int, size: int = 32) -> Any:
    return np.full((size, size, 3), brightness, np.uint8)


def put(archive: Archive, name: str, data: bytes) -> None:
    path = archive.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def fill(archive: Archive) -> None:
    """Put an object in every syntax, one of several frames, files of other kinds and hostile ones into an archive."""
    for number, syntax in enumerate(SYNTAXES):
        data = make_dicom(
            grey(10 + 5 * number),
            syntax,
            photometric=COLOURS.get(syntax, "RGB"),
            seed=number,
            PatientAge="061Y",
            PatientSex="F",
            AnatomicRegionSequence=[code("SRT", "T-D2100")],
        )
        put(archive, f"DICOM/IM{number:04d}" if number % 2 else f"DICOM/{syntax}.dcm", data)
    frames = [grey(brightness) for brightness in (60, 120, 60, 240)]
    put(archive, "several.dcm", make_dicom(frames, "rle", sop_class=MULTI_FRAME_TRUE_COLOUR, seed=50))
    put(archive, "plain.png", encode_image(grey(200), "PNG"))
    jpeg = encode_frame(grey(100), "jpeg")
    put(archive, "same.jpg", jpeg)
    put(archive, "same.dcm", make_dicom(grey(100), "jpeg", photometric="YBR_FULL_422", encoded=[jpeg], seed=51))
    whole = make_dicom(grey(100), seed=52)
    put(archive, "cut.dcm", whole[:-100])
    put(archive, "report.dcm", write_dicom(make_headers(sop_class=STRUCTURED_REPORT, seed=53)))
    put(archive, "garbage.dcm", bytes(128) + b"DICM" + b"\xff" * 999)
    put(archive, "claims.dcm", make_dicom(grey(100), NumberOfFrames="2", seed=54))
    put(archive, "noise", b"no object")


def rows(archive: Archive, batch: int) -> dict[tuple[str, int | None], Any]:
    query = text(
        "SELECT item.*, result.malignant_score AS score FROM item LEFT JOIN result"
        " ON result.input_digest = item.input_digest WHERE batch_id = :b"
    )
    with archive.engine.connect() as connection:
        return {(row.path, row.frame): row for row in connection.execute(query, {"b": batch})}


def expect_verdicts(archive: Archive, batch: int) -> None:
    """Check what became of what `fill` made; scores are brightness."""
    found = rows(archive, batch)
    assert archive.counts(batch).reasons == {"truncated": 2, "unsupported_format": 1, "unreadable": 1}
    assert found["cut.dcm", None].reason == found["claims.dcm", 2].reason == "truncated"
    for number, syntax in enumerate(SYNTAXES):
        row = found[f"DICOM/IM{number:04d}" if number % 2 else f"DICOM/{syntax}.dcm", None]
        assert row.state == "done"
        assert abs(row.score * 255 - (10 + 5 * number)) < (3 if syntax in {"jpeg", "jpeg2000"} else 0.01)
        assert (row.age, row.sex, row.localization) == (61, "female", "back")
        assert row.patient_ref == f"patient-{number}"
        assert row.instance_uid == make_headers(seed=number).SOPInstanceUID
    # Each frame has its own verdict, two equal ones included, and the same file
    frames = [found["several.dcm", number] for number in (1, 2, 3, 4)]
    assert [round(row.score * 255) for row in frames] == [60, 120, 60, 240]
    assert [row.state for row in frames] == ["done", "done", "done", "referred"]
    assert len({row.input_digest for row in frames}) == 4
    assert len({row.image_digest for row in frames}) == 1
    assert round(found["claims.dcm", 1].score * 255) == 100
    assert found["plain.png", None].score * 255 == 200
    assert found["plain.png", None].instance_uid is None
    # And a JPEG is to the model what it is in a folder
    assert found["same.dcm", None].score == found["same.jpg", None].score


def test_a_mixed_tree_is_screened_frame_by_frame(archive: Archive, stack: Stack) -> None:
    # Given a tree of everything, and a table that contradicts one object
    archive.activate_model()
    fill(archive)
    table = archive.root.parent / "table.csv"
    table.write_text("image,age,sex\nseveral,33,f\nIM0001,20,f\n", encoding="utf-8")

    # If it is submitted with the table and screened
    said = stack.command("submit", archive.root, "--metadata", table, "--columns", "image=image,age=age,sex=sex")
    batch = json.loads(said.stdout)["batch"]
    stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then the table counts, and the contradiction is counted
    found = rows(archive, batch)
    assert "1  images whose DICOM header contradicts the table" in said.stderr
    assert (found["DICOM/IM0001", None].age, found["DICOM/IM0001", None].sex) == (20, "f")
    assert {found["several.dcm", n].age for n in (1, 2, 3, 4)} == {33}
    assert found["several.dcm", 1].patient_ref == "patient-50"
    # And no identifier of a study, no patient and no file is in a log
    for name in ("w1", "feeder"):
        assert not any(word in stack.log(name) for word in ("patient-", "Doe", make_headers().StudyInstanceUID, ".dcm"))

    # If it is submitted without the table
    batch = json.loads(stack.command("submit", archive.root).stdout)["batch"]
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then the headers speak, and every item has the outcome that it should
    expect_verdicts(archive, batch)
    # And the same archive again is the same batch
    assert json.loads(stack.command("submit", archive.root).stdout)["batch"] == batch

    # If a file changes behind the ledger's back, then it is named once, whatever its frames
    assert list(rehash_files(archive.engine, batch, archive.root)) == []
    (archive.root / "several.dcm").write_bytes(make_dicom(grey(9), seed=50))
    assert [one.path for one in rehash_files(archive.engine, batch, archive.root)] == ["several.dcm"]


def test_pictures_are_drawn_of_the_frame_that_was_scored(archive: Archive, stack: Stack) -> None:
    # Given a screened object of several frames
    archive.activate_model()
    frames = [grey(brightness) for brightness in (60, 120)]
    put(archive, "several.dcm", make_dicom(frames, sop_class=MULTI_FRAME_TRUE_COLOUR))
    batch = json.loads(stack.command("submit", archive.root).stdout)["batch"]
    stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)

    # If they are decoded to be drawn
    _, items = scored_items(archive.engine, archive.chunks(batch)[0])
    drawn = [_decode(archive.root, item, LightClassifier("a" * 64), 10**7) for item in items]

    # Then each is its own frame
    assert [int(one[1].pixels.mean()) for one in drawn if one] == [60, 120]


def test_objects_on_object_storage_are_read_as_those_in_a_folder(
    archive: Archive, stack: Stack, object_server: ObjectServer
) -> None:
    # Given the same tree on object storage
    stack.environment.update(object_server.settings)
    archive.activate_model()
    fill(archive)
    object_server.copy(archive.root, "ward")

    # If it is screened
    batch = json.loads(stack.command("submit", "s3://archive/ward").stdout)["batch"]
    stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then every item has the outcome that it should
    expect_verdicts(archive, batch)
