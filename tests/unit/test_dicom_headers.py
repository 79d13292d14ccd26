"""DICOM headers at submit: what is read of them, which archives they make, and what hostile ones do."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from db.batches import ItemRow
from model.metadata import SITE_WORDS, SITES
from producer import dicom, dicom_sites
from producer.archive import Walk, open_archive
from producer.dicom import MOST_FRAMES, DicomRecord, read_dataset, read_file
from producer.dicom_sites import same_site, site_of_body_part, site_of_code
from producer.manifest import Manifest
from tests.dicoms import (
    ENDOSCOPY,
    MULTI_FRAME_TRUE_COLOUR,
    STRUCTURED_REPORT,
    SYNTAXES,
    code,
    make_dicom,
    make_headers,
    write_dicom,
)

PIXELS = np.zeros((4, 6, 3), np.uint8)
BACK = [code("SCT", "77568009", "Back")]
DOCUMENT = Path(__file__).parents[2] / "producer" / "DICOM.md"


def said(**headers: Any) -> DicomRecord:
    return read_dataset(make_headers(**headers))


@pytest.mark.parametrize(
    ("age", "years"),
    [("061Y", 61), ("018M", 1.5), ("052W", 52 * 7 / 365.25), ("010D", 10 / 365.25), ("000Y", 0), ("120Y", 120)],
)
def test_an_age_is_told_in_years(age: str, years: float) -> None:
    assert said(PatientAge=age).age == pytest.approx(years)
    assert said(PatientAge=age).problems == ()


@pytest.mark.parametrize(
    ("born", "studied", "years"),
    [
        ("19600229", "20200228", 59),
        ("19600229", "20200301", 60),
        ("1960.02.29", "20200229", 60),
        ("", "20200101", None),
    ],
)
def test_without_an_age_birth_and_study_tell_it(born: str, studied: str, years: float | None) -> None:
    assert said(PatientBirthDate=born, StudyDate=studied).age == years


@pytest.mark.parametrize("age", ["old", "999Y", "-01Y", "061", "06 1Y"])
def test_an_age_that_is_none_is_counted_and_left_out(age: str) -> None:
    assert said(PatientAge=age).age is None
    assert "bad_age" in said(PatientAge=age).problems


@pytest.mark.parametrize(
    ("sex", "word", "problems"),
    [("M", "male", ()), ("F", "female", ()), ("O", "other", ()), ("", None, ()), ("W", None, ("bad_sex",))],
)
def test_the_sex_is_a_word(sex: str, word: str | None, problems: tuple[str, ...]) -> None:
    record = said(PatientSex=sex)

    assert (record.sex, record.problems) == (word, problems)


@pytest.mark.parametrize(
    ("scheme", "value", "site"),
    [
        ("SCT", "89545001", "face"),
        ("SRT", "T-D1200", "face"),
        ("SNM3", "T-D1200", "face"),
        ("99SDM", "T-D2100", "back"),
        ("SCT", "56459004", "foot"),
        ("SRT", "T-D4000", "abdomen"),
        ("SRT", "T-02652", "acral"),
        ("SCT", "22943007", "trunk"),
        ("SCT", "T-D1200", None),
        ("SCT", "80891009", None),
    ],
)
def test_a_coded_region_is_one_of_our_sites(scheme: str, value: str, site: str | None) -> None:
    record = said(AnatomicRegionSequence=[code(scheme, value)])

    assert record.localization == site
    assert record.problems == (() if site else ("unknown_site",))


@pytest.mark.parametrize(
    ("part", "site"),
    [("FACE", "face"), ("Upper Extremity", "upper extremity"), ("LOWER_EXTREMITY", "lower extremity"), ("HEART", None)],
)
def test_the_word_for_a_body_part_helps_where_there_is_no_code(part: str, site: str | None) -> None:
    assert said(BodyPartExamined=part).localization == site
    # And a code counts more, where it is known
    assert said(BodyPartExamined=part, AnatomicRegionSequence=BACK).localization == "back"
    assert said(BodyPartExamined=part, AnatomicRegionSequence=[code("99X", "1")]).localization == site


def test_our_sites_are_words_of_the_model_and_its_more_general_ones_are_ours() -> None:
    # "trunk" is a word of the paper's encoding alone; the model has no side for it
    assert set(dicom_sites._CODES) - {"trunk"} <= set(SITE_WORDS) | set(SITES)
    assert {word: general for word, general in SITE_WORDS.items() if word != general} == dicom_sites._GENERAL
    assert same_site("Abdomen", "anterior torso")
    assert same_site("back", "BACK")
    assert not same_site("back", "chest")


def test_the_document_lists_every_code_and_every_word() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ") and "SCT" in line}

    for site, schemes in dicom_sites._CODES.items():
        for scheme, codes in schemes.items():
            for value in codes.split():
                assert f"{scheme} {value}" in rows[site]
                assert site_of_code(scheme, value) == site
    for site, parts in dicom_sites._BODY_PARTS.items():
        for part in parts.split():
            assert part in rows[site]
            assert site_of_body_part(part) == site


def test_identifiers_and_patient_are_read_and_garbage_is_not() -> None:
    good = make_headers(seed=3)
    record = read_dataset(good)
    assert record.study_uid == good.StudyInstanceUID
    assert record.series_uid == good.SeriesInstanceUID
    assert record.instance_uid == good.SOPInstanceUID
    assert record.patient_ref == "patient-3"

    bad = said(StudyInstanceUID="not a uid", PatientID="x" * 501)
    assert (bad.study_uid, bad.patient_ref) == (None, None)
    assert bad.problems == ("bad_uid", "bad_patient_id")


def test_the_same_is_read_of_what_a_pacs_sends() -> None:
    headers = make_headers(PatientAge="061Y", PatientSex="F", AnatomicRegionSequence=BACK, NumberOfFrames="3")

    assert read_dataset(Dataset.from_json(headers.to_json())) == read_dataset(headers)
    assert read_dataset(headers).frames == 3


@pytest.mark.parametrize(
    ("frames", "counted", "rejected"),
    [
        ("1", 1, None),
        (str(MOST_FRAMES), MOST_FRAMES, None),
        (str(MOST_FRAMES + 1), 1, "too_many_frames"),
        ("999999999", 1, "too_many_frames"),
        ("0", 1, "unreadable"),
        ("-1", 1, "unreadable"),
        ("", 1, None),
    ],
)
def test_frames_are_counted_within_bounds(frames: str, counted: int, rejected: str | None) -> None:
    record = said(NumberOfFrames=frames)

    assert (record.frames, record.rejected) == (counted, rejected)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_files_headers_are_read_in_every_syntax(syntax: str) -> None:
    data = make_dicom(
        PIXELS if syntax != "jpeg2000_lossless" else np.zeros((32, 32, 3), np.uint8),
        syntax,
        seed=7,
        PatientAge="061Y",
        PatientSex="F",
        AnatomicRegionSequence=BACK,
    )

    record = read_file(io.BytesIO(data))

    assert record is not None
    assert (record.age, record.sex, record.localization, record.patient_ref) == (61, "female", "back", "patient-7")
    assert (record.rejected, record.problems, record.frames) == (None, (), 1)
    assert record.instance_uid == make_headers(seed=7).SOPInstanceUID


def test_a_header_behind_a_thumbnail_is_read_and_pixels_are_not() -> None:
    class Watched(io.BytesIO):
        def __init__(self, data: bytes) -> None:
            super().__init__(data)
            self.most = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            self.most = max(self.most, self.tell())
            return found

    plain = Watched(make_dicom(np.zeros((800, 800, 3), np.uint8), PatientAge="061Y"))
    thumbnail = Watched(make_dicom(np.zeros((800, 800, 3), np.uint8), PatientAge="061Y", EncryptedContent=bytes(10)))
    long = make_headers(PatientAge="061Y")
    long.add_new(0x00091010, "OB", bytes(200_000))
    behind = Watched(write_dicom(long))

    for file in (plain, thumbnail, behind):
        record = read_file(file)
        assert record is not None
        assert record.age == 61
    assert plain.most == 1 << 16


@pytest.mark.parametrize(
    ("data", "rejected"),
    [
        (write_dicom(make_headers(sop_class=STRUCTURED_REPORT)), "unsupported_format"),
        (make_dicom(PIXELS, sop_class=ENDOSCOPY), "unsupported_format"),
        (make_dicom(PIXELS, sop_class="1.2.840.10008.5.1.4.1.1.2"), "unsupported_format"),
        (bytes(128) + b"DICM", "unreadable"),
        (bytes(128) + b"DICM" + bytes(5000), "unreadable"),
        (bytes(128) + b"DICM" + b"\xff" * 5000, "unreadable"),
    ],
    ids=["report", "endoscopy", "CT", "nothing", "zeros", "ones"],
)
def test_what_is_no_photograph_is_refused_with_a_reason(data: bytes, rejected: str) -> None:
    record = read_file(io.BytesIO(data))

    assert record is not None
    assert record.rejected == rejected


def test_what_is_no_dicom_file_is_not_read() -> None:
    assert read_file(io.BytesIO(b"x" * 500)) is None
    assert read_file(io.BytesIO(b"")) is None


def test_hostile_headers_end_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    # Given a bomb, deep nesting, a private tag of four gigabytes, and objects cut and flipped anywhere
    whole = make_dicom(PIXELS, PatientAge="061Y", PatientName="CANARY", AnatomicRegionSequence=BACK, NumberOfFrames="1")
    at = whole.index(struct.pack("<HH2s", 8, 0x16, b"UI"))
    opening = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    deflated = make_dicom(PIXELS, "deflated")
    start = 144 + struct.unpack_from("<I", deflated, 140)[0]
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    giant = struct.pack("<HH2sHI", 9, 0x1010, b"OB", 0, 0xFFFFFFF0)
    hostile = [
        whole[:at] + opening * 5000 + whole[at:],
        whole[:at] + giant + whole[at:],
        deflated[:start] + stream.compress(giant + bytes(50_000_000)) + stream.flush(),
    ]
    generator = random.Random(2)
    for _ in range(600):
        broken = bytearray(whole)
        for _ in range(generator.choice((0, 1, 5, 40))):
            broken[generator.randrange(132, len(broken))] = generator.randrange(256)
        hostile.append(bytes(broken[: generator.choice((len(broken), generator.randrange(132, len(broken))))]))

    # If their headers are read; then there is always an answer, and nothing of them is printed
    records = [read_file(io.BytesIO(data)) for data in hostile]
    assert None not in records
    assert {record.rejected for record in records if record} >= {None, "unreadable", "unsupported_format"}
    assert capfd.readouterr() == ("", "")


def test_a_header_of_more_items_than_any_is_not_taken_apart() -> None:
    whole = make_dicom(PIXELS)
    at = whole.index(struct.pack("<HH2s", 0x10, 0x10, b"PN"))

    def with_items(count: int) -> DicomRecord | None:
        items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * count
        sequence = (
            struct.pack("<HH2sHI", 9, 0x1010, b"SQ", 0, 0xFFFFFFFF) + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        )
        return read_file(io.BytesIO(whole[:at] + sequence + whole[at:]))

    few, many = with_items(100), with_items(11_000)
    assert few is not None
    assert many is not None
    assert (few.rejected, many.rejected) == (None, "unreadable")


def test_without_the_extra_an_object_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given no pydicom
    monkeypatch.setattr(dicom, "is_installed", lambda: False)
    (tmp_path / "a.dcm").write_bytes(make_dicom(PIXELS))
    (tmp_path / "b.jpg").write_bytes(b"x")

    # Then the object is an item that is rejected, and everything else is as before
    found = {file.path: file.rejected for file in Walk(open_archive(tmp_path))}
    assert found == {"a.dcm": "needs_dicom_extra", "b.jpg": None}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a tree of everything."""
    root = tmp_path / "root"
    (root / "DICOM" / "7").mkdir(parents=True)
    several = make_dicom([PIXELS] * 3, sop_class=MULTI_FRAME_TRUE_COLOUR, seed=40, PatientAge="030Y", PatientSex="M")
    directory = make_headers(sop_class="1.2.840.10008.1.3.10")
    files = {
        "DICOMDIR": write_dicom(directory),
        "DICOM/7/IM000001": make_dicom(PIXELS, seed=1, PatientAge="061Y", PatientSex="F", AnatomicRegionSequence=BACK),
        "DICOM/7/1.2.840.113619.2": make_dicom(PIXELS, "rle", seed=2),
        "DICOM/7/several.dcm": several,
        "DICOM/7/report.dcm": write_dicom(make_headers(sop_class=STRUCTURED_REPORT, seed=4)),
        "DICOM/7/nothing.dcm": b"x",
        "plain.jpg": b"x",
        "picture.png": b"xy",
        "README": b"not one of them",
        "notes.txt": b"text",
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


class Read:
    """A manifest's items and problems."""

    def __init__(self, root: Path, metadata: Path | None = None, columns: dict[str, str] | None = None) -> None:
        with Manifest(open_archive(root, metadata, columns)) as manifest:
            self.items: list[ItemRow] = list(manifest.items())
            assert manifest.count() == len(self.items)
            self.counts, self.ignored, self.digest = manifest.problem_counts(), manifest.ignored, manifest.digest()
            self.problems = list(manifest.problems())

    def __iter__(self) -> Iterator[ItemRow]:
        return iter(self.items)


def test_a_mixed_tree_is_walked_and_each_frame_is_an_item(tree: Path) -> None:
    read = Read(tree)

    found = {(one.path, one.frame): one for one in read}
    assert {key: one.rejected for key, one in found.items()} == {
        ("DICOM/7/IM000001", None): None,
        ("DICOM/7/1.2.840.113619.2", None): None,
        ("DICOM/7/several.dcm", 1): None,
        ("DICOM/7/several.dcm", 2): None,
        ("DICOM/7/several.dcm", 3): None,
        ("DICOM/7/report.dcm", None): "unsupported_format",
        ("DICOM/7/nothing.dcm", None): None,
        ("plain.jpg", None): None,
        ("picture.png", None): None,
    }
    assert read.ignored == {"(none)": 1, "dicomdir": 1, "txt": 1}
    one = found["DICOM/7/IM000001", None]
    assert (one.age, one.sex, one.localization, one.patient_ref) == (61, "female", "back", "patient-1")
    assert one.instance_uid == make_headers(seed=1).SOPInstanceUID
    assert [found["DICOM/7/several.dcm", n].image_id for n in (1, 2, 3)] == ["several#1", "several#2", "several#3"]
    assert found["DICOM/7/several.dcm", 2].age == 30
    assert read.counts == {}


def test_the_table_counts_more_than_the_header_and_a_contradiction_is_counted(tree: Path, tmp_path: Path) -> None:
    # Given a table that agrees with one object as tables do, says nothing of another, and contradicts a third
    table = tmp_path / "t.csv"
    rows = ["image,age,sex,site,patient", "IM000001,60,f,posterior torso,", "several,50,,,other-patient"]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = {"image": "image", "age": "age", "sex": "sex", "localization": "site", "patient_ref": "patient"}

    read = Read(tree, table, columns)

    # Then the table's words stand, and the header fills in what it leaves open
    found = {(one.path, one.frame): one for one in read}
    one = found["DICOM/7/IM000001", None]
    assert (one.age, one.sex, one.localization, one.patient_ref) == (60, "f", "posterior torso", "patient-1")
    frame = found["DICOM/7/several.dcm", 2]
    assert (frame.age, frame.sex, frame.patient_ref) == (50, "male", "other-patient")
    assert read.counts == {"header_differs": 1, "image_without_row": 5}
    assert [problem.image for problem in read.problems if problem.reason == "header_differs"] == ["DICOM/7/several.dcm"]


@pytest.mark.parametrize(
    ("column", "cell"),
    [("age", "30"), ("age", "48"), ("sex", "male"), ("site", "chest"), ("patient", "somebody")],
)
def test_each_value_can_contradict(tmp_path: Path, column: str, cell: str) -> None:
    root, table = tmp_path / "root", tmp_path / "t.csv"
    root.mkdir()
    data = make_dicom(PIXELS, PatientAge="052Y", PatientSex="F", AnatomicRegionSequence=BACK)
    (root / "a.dcm").write_bytes(data)
    table.write_text(f"image,{column}\na,{cell}\n", encoding="utf-8")
    role = {"site": "localization", "patient": "patient_ref"}.get(column, column)

    assert Read(root, table, {"image": "image", role: column}).counts == {"header_differs": 1}


def test_the_digest_tells_another_instance(tmp_path: Path) -> None:
    # Given an object, and another one of the same name, size and time
    def digest(seed: int) -> str:
        path = tmp_path / "a.dcm"
        headers = make_headers(seed=5)
        headers.SOPInstanceUID = f"1.2.{seed}"
        path.write_bytes(write_dicom(headers))
        os.utime(path, ns=(1, 1))
        return Read(tmp_path).digest

    assert digest(3) == digest(3) != digest(4)


def test_what_a_header_cannot_say_is_counted_for_the_user(tmp_path: Path) -> None:
    region = [code("SCT", "80891009", "Heart")]
    (tmp_path / "a.dcm").write_bytes(make_dicom(PIXELS, PatientAge="old", AnatomicRegionSequence=region))

    read = Read(tmp_path)

    assert read.counts == {"bad_age": 1, "unknown_site": 1}
    assert read.items[0].age is None
