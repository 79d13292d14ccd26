"""The manifest: every file and every row is accounted for."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.batches import ItemRow
from producer.archive import FoundFile, open_archive
from producer.manifest import Manifest, Problem
from producer.records import read_record

COLUMNS = {"image": "image", "age": "age", "sex": "sex", "localization": "site", "lesion_id": "lesion"}
HEADER = "image,age,sex,site,lesion"


class Read:
    """What a manifest says about an archive."""

    def __init__(self, root: Path, *, metadata: Path | None = None) -> None:
        archive = open_archive(root, metadata, COLUMNS if metadata else None)
        with Manifest(archive) as manifest:
            self.items: list[ItemRow] = list(manifest.items())
            assert manifest.count() == len(self.items)
            self.counts = manifest.problem_counts()
            self.problems: list[Problem] = list(manifest.problems())
            self.digest = manifest.digest()
            assert manifest.digest() == self.digest

    @property
    def lines(self) -> list[tuple[int | None, str]]:
        return [(problem.line, problem.reason) for problem in self.problems]

    def one(self, path: str) -> ItemRow:
        (item,) = [item for item in self.items if item.path == path]
        return item


def _read(tmp_path: Path, files: list[str], rows: list[str]) -> Read:
    root = tmp_path / "root"
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number + 1))
    root.mkdir(exist_ok=True)
    table = tmp_path / "t.csv"
    table.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return Read(root, metadata=table)


def test_a_row_finds_its_image_by_name_by_file_name_and_by_path(tmp_path: Path) -> None:
    read = _read(
        tmp_path,
        ["p/a.jpg", "p/b.JPG", "q/c.png", "q/d.jpeg"],
        ["a,41,male,back,L1", "b.jpg,42,,,", "q/c.png,43,,,", ".\\q\\d,44,,,"],
    )

    assert {item.path: item.age for item in read.items} == {"p/a.jpg": 41, "p/b.JPG": 42, "q/c.png": 43, "q/d.jpeg": 44}
    assert read.one("p/a.jpg").image_id == "a"
    assert read.one("p/a.jpg").sex == "male"
    assert read.one("p/a.jpg").lesion_id == "L1"
    assert read.counts == {}


def test_an_image_without_a_row_is_screened_and_counted(tmp_path: Path) -> None:
    read = _read(tmp_path, ["a.jpg", "b.jpg"], ["a,41,,,"])

    assert read.one("b.jpg").rejected is None
    assert read.one("b.jpg").image_id == "b"
    assert read.counts == {"image_without_row": 1}
    assert read.problems == [Problem(line=None, reason="image_without_row", image="b.jpg")]


def test_without_a_table_no_image_is_odd(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")

    read = Read(tmp_path)

    assert read.counts == {}
    assert read.items == [ItemRow(path="a.jpg", size=1, mtime_ns=(tmp_path / "a.jpg").stat().st_mtime_ns, image_id="a")]


def test_a_row_without_its_image_is_an_item_that_is_rejected(tmp_path: Path) -> None:
    read = _read(tmp_path, ["a.jpg"], ["a,1,,,", "gone,50,female,face,L9", "p/lost.png,,,,"])

    named = [item for item in read.items if item.rejected]
    assert [(item.image_id, item.path, item.rejected) for item in named] == [
        ("gone", None, "missing_image"),
        ("lost", "p/lost.png", "missing_image"),
    ]
    assert named[0].age == 50
    assert read.lines == [(3, "missing_image"), (4, "missing_image")]


@pytest.mark.parametrize("cell", ["../a", "/etc/a.jpg", "file:///a.jpg", "~/a.jpg", "C:\\a.jpg", "a\0", "\\\\h\\a.jpg"])
def test_a_row_that_leads_out_of_the_archive_is_refused_with_its_line(tmp_path: Path, cell: str) -> None:
    # Given the file that it would lead to, named as innocently as can be
    read = _read(tmp_path, ["a.jpg"], [f"{cell},50,female,face,L9"])

    # Then the row is an item of its own that nothing can open, and the file is another one
    assert read.one("a.jpg").age is None
    refused = [item for item in read.items if item.rejected == "unsafe_path"]
    assert [(item.path, item.image_id, item.age) for item in refused] == [(None, cell, None)]
    assert (2, "unsafe_path") in read.lines


def test_a_row_that_says_the_same_again_is_reported_and_changes_nothing(tmp_path: Path) -> None:
    read = _read(tmp_path, ["a.jpg"], ["a,41,,,", "a,41,,,", "gone,,,,", "gone,,,,"])

    assert read.one("a.jpg").age == 41
    assert len(read.items) == 2
    assert read.lines == [(3, "duplicate_row"), (4, "missing_image"), (5, "duplicate_row")]


def test_of_rows_that_contradict_each_other_the_first_counts(tmp_path: Path) -> None:
    read = _read(tmp_path, ["a.jpg"], ["a,41,,,", "a,66,,,", "gone,1,,,", "gone,2,,,"])

    assert read.one("a.jpg").age == 41
    assert [item.age for item in read.items if item.rejected] == [1]
    assert read.lines == [(3, "conflicting_row"), (4, "missing_image"), (5, "conflicting_row")]


def test_a_row_with_the_whole_path_beats_one_with_the_name(tmp_path: Path) -> None:
    read = _read(tmp_path, ["p/a.jpg"], ["a,41,,,", "p/a.jpg,66,,,"])

    assert read.one("p/a.jpg").age == 66
    assert read.lines == [(2, "conflicting_row")]


def test_one_name_for_two_different_files_gives_neither_the_row(tmp_path: Path) -> None:
    # Given two patients' folders with an image of the same name, and one row
    read = _read(tmp_path, ["p1/img.jpg", "p2/img.jpg"], ["img,41,,,"])

    # Then nobody gets somebody else's age
    assert [item.age for item in read.items] == [None, None]
    assert read.lines == [(2, "ambiguous_name")]


def test_namesakes_of_one_size_are_told_apart_by_their_content(tmp_path: Path) -> None:
    # Given two patients' images of one name and, by chance, one size, that differ in their middle alone
    for folder, middle in (("p1", b"a"), ("p2", b"b")):
        (tmp_path / "root" / folder).mkdir(parents=True)
        (tmp_path / "root" / folder / "img.jpg").write_bytes(b"." * 50_000 + middle + b"." * 50_000)
    table = tmp_path / "t.csv"
    table.write_text(f"{HEADER}\nimg,41,,,\n", encoding="utf-8")

    read = Read(tmp_path / "root", metadata=table)

    assert [item.age for item in read.items] == [None, None]
    assert read.lines == [(2, "ambiguous_name")]


def test_copies_of_one_image_share_its_row(tmp_path: Path) -> None:
    # Given the same image twice, as in Kaggle's HAM10000
    for folder in ("part_1", "PART_1"):
        (tmp_path / "root" / folder).mkdir(parents=True)
        (tmp_path / "root" / folder / "a.jpg").write_bytes(b"same")
    table = tmp_path / "t.csv"
    table.write_text(f"{HEADER}\na,41,,,\n", encoding="utf-8")

    read = Read(tmp_path / "root", metadata=table)

    assert [item.age for item in read.items] == [41, 41]
    assert read.lines == [(2, "several_copies")]


def test_files_that_differ_in_the_ending_are_told_apart_by_it(tmp_path: Path) -> None:
    read = _read(tmp_path, ["a.jpg", "a.png"], ["a.png,41,,,"])

    assert {item.path: item.age for item in read.items} == {"a.jpg": None, "a.png": 41}
    assert read.counts == {"image_without_row": 1}


def test_a_name_written_decomposed_is_the_same_name(tmp_path: Path) -> None:
    # Given a file from a Mac and a table from elsewhere
    name = unicodedata.normalize("NFD", "müller")
    read = _read(tmp_path, [f"{name}.jpg"], ["müller,41,,,"])

    assert [item.age for item in read.items] == [41]


@pytest.mark.parametrize("age", ["abc", "-1", "121", "1e1", "nan1", "0x10", "4 5", "\u0664\u0665x", "9" * 400, "80,5"])
def test_a_bad_age_is_reported_and_the_image_screened_without_it(tmp_path: Path, age: str) -> None:
    read = _read(tmp_path, ["a.jpg"], [f'a,"{age}",male,back,'])

    assert read.one("a.jpg").age is None
    assert read.one("a.jpg").sex == "male"
    assert read.one("a.jpg").rejected is None
    assert read.lines == [(2, "bad_age")]


@pytest.mark.parametrize("cell", ["", "NaN", "unknown", " ", "N/A", "None", "null"])
def test_what_is_not_known_is_normal(tmp_path: Path, cell: str) -> None:
    read = _read(tmp_path, ["a.jpg"], [f"a,{cell},{cell},{cell},{cell}"])

    item = read.one("a.jpg")
    assert (item.age, item.sex, item.localization, item.lesion_id) == (None, None, None, None)
    assert read.counts == {}


@pytest.mark.parametrize(("cell", "age"), [("0", 0), ("120", 120), ("80.0", 80), (" 35 ", 35), ("5.", 5)])
def test_ages_from_0_to_120_are_read(tmp_path: Path, cell: str, age: float) -> None:
    assert _read(tmp_path, ["a.jpg"], [f"a,{cell},,,"]).one("a.jpg").age == age


def test_unreadable_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    read = _read(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["a,1", "b,1,,,,extra", ",5,,,", f"c,1,{'x' * 600},,"])

    assert read.lines == [
        (2, "wrong_number_of_cells"),
        (3, "wrong_number_of_cells"),
        (4, "no_image_named"),
        (5, "cell_too_long"),
        (None, "image_without_row"),
        (None, "image_without_row"),
    ]
    # The files are screened all the same
    assert [item.rejected for item in read.items] == [None, None, None]


def test_a_name_that_is_no_text_is_rejected_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.jpg")).write_bytes(b"x")
    (root / "a.jpg").write_bytes(b"x")

    read = Read(root)

    assert Counter(item.rejected for item in read.items) == {None: 1, "unreadable_name": 1}
    assert any(item.path == "\udcff\udcfe.jpg" for item in read.items)


def test_a_lone_surrogate_in_the_table_meets_no_file(tmp_path: Path) -> None:
    # Given a table that names the replacement of an unreadable name
    root = tmp_path / "root"
    root.mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.jpg")).write_bytes(b"x")
    table = tmp_path / "t.csv"
    table.write_text(f"{HEADER}\n?,41,,,\n", encoding="utf-8")

    read = Read(root, metadata=table)

    assert [item.age for item in read.items] == [None]


def test_the_digest_changes_with_whatever_the_model_or_the_report_sees(tmp_path: Path) -> None:
    # Given an archive
    table = tmp_path / "t.csv"
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"x")
    os.utime(root / "a.jpg", ns=(1, 1))

    def digest(rows: str) -> str:
        table.write_text(f"{HEADER}\n{rows}", encoding="utf-8")
        return Read(root, metadata=table).digest

    first = digest("a,41,male,,\n")

    # Then reading it again, blank lines and other files change nothing
    (root / "notes.txt").write_text("x")
    assert digest("\n\na,41,male,,\n") == first

    # And rows, times, sizes and files do
    seen = {first, digest("a,42,male,,\n"), digest("a,41,female,,\n"), digest("a,41,male,,\nb,1,,,\n"), digest("")}
    os.utime(root / "a.jpg", ns=(2, 2))
    seen.add(digest("a,41,male,,\n"))
    (root / "a.jpg").write_bytes(b"xy")
    os.utime(root / "a.jpg", ns=(1, 1))
    seen.add(digest("a,41,male,,\n"))
    (root / "b.jpg").write_bytes(b"x")
    seen.add(digest("a,41,male,,\n"))
    assert len(seen) == 8


def test_the_digest_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    first = _read(tmp_path, ["a.jpg", "b.jpg"], ["a,1,,,", "b,2,,,", "c,3,,,", "d,4,,,"])
    second = _read(tmp_path, [], ["d,4,,,", "b,2,,,", "c,3,,,", "a,1,,,"])

    assert first.digest == second.digest


_cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='",\r\n;\t'), max_size=12)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b.jpg", "q/c.jpg", "gone", "../x", ""]) | _cells, _cells), max_size=8
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_whatever_the_table_says_every_file_is_an_item_and_every_row_has_a_place(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    # Given three files and any rows
    lines = [f"{image},{age},,," for image, age in rows]
    read = _read(tmp_path, ["a.jpg", "p/b.jpg", "q/c.jpg"], lines)

    # Then every file is there once, screened
    files = [item.path for item in read.items if item.rejected is None]
    assert sorted(str(path) for path in files) == ["a.jpg", "p/b.jpg", "q/c.jpg"]
    # And every row follows a file, is a rejected item, or is reported
    with_row = 3 - read.counts.get("image_without_row", 0)
    lone = sum(item.rejected is not None for item in read.items)
    names = ("duplicate_row", "conflicting_row", "no_image_named", "wrong_number_of_cells", "unreadable_row")
    dropped = sum(read.counts.get(name, 0) for name in names)
    assert with_row + lone + dropped == len(rows)


def test_a_record_keeps_the_most_specific_diagnosis() -> None:
    columns = {"image": (0,), "dx": (3, 2, 1)}

    record, problems = read_record(2, ("a", "Benign", "Nevus", ""), columns)

    assert record is not None
    assert record.label == "Nevus"
    assert problems == []


class _ManyFiles:
    """Walks an archive of any size that is on no disk; half of its files have a row."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.ignored: Counter[str] = Counter()
        self.unreadable_folders = 0

    def __iter__(self) -> Iterator[FoundFile]:
        for number in range(0, self._count * 2, 2):
            yield FoundFile(path=f"part_{number % 7}/image_{number:09d}.jpg", size=number, mtime_ns=number)


def _peak_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> int:
    table = tmp_path / f"{count}.csv"
    with table.open("w", encoding="utf-8") as file:
        file.write(f"{HEADER}\n")
        # Rows with and without an image, and a bad age in each: whatever is kept for a report must not pile up either.
        file.writelines(f"image_{number:09d},bad,male,back,L{number}\n" for number in range(count))
    monkeypatch.setattr("producer.manifest.Walk", lambda _archive: _ManyFiles(count))
    archive = open_archive(tmp_path, table, COLUMNS)
    tracemalloc.start()
    try:
        with Manifest(archive) as manifest:
            assert len(manifest.digest()) == 64
            assert sum(1 for _item in manifest.items()) == count + count // 2
            assert sum(1 for _problem in manifest.problems()) == count + count // 2 + count // 2
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_stays_flat_whatever_the_size_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given one archive, and another of three times as many files and rows
    # The first run pays for what is imported late
    _peak_bytes(tmp_path, monkeypatch, 100)
    small = _peak_bytes(tmp_path, monkeypatch, 4_000)
    large = _peak_bytes(tmp_path, monkeypatch, 12_000)

    # Then staging, digesting and listing both takes the same: one pointer kept for each row would be 64 kB more
    assert large < small + 32_000


def test_the_digest_of_an_archive_without_dicom_is_that_of_every_version(tmp_path: Path) -> None:
    # Given an archive, and its manifest as the first version wrote it
    read = _read(tmp_path, ["a.jpg"], ["a,41,male,back,L1"])
    (item,) = read.items
    row = ["a.jpg", item.size, item.mtime_ns, None, "a", "L1", None, 41.0, "male", "back", None]
    written = b"lesion-screen manifest 1\n" + json.dumps(row).encode() + b"\n"

    # Then it is the same archive still: a batch that was screened is found again
    assert read.digest == hashlib.sha256(written).hexdigest()
