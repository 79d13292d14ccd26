"""Recognising archives and walking them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from producer.archive import Archive, Layout, Walk, open_archive
from producer.errors import ArchiveProblem, ServiceProblem, TableProblem
from producer.table import open_table, parse_columns, read_rows

HAM_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
ISIC_HEADER = "isic_id,age_approx,anatom_site_general,diagnosis_1,diagnosis_3,lesion_id,sex"


def _write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _walk(root: Path) -> tuple[dict[str, str | None], Walk]:
    walk = Walk(open_archive(root))
    return {file.path: file.rejected for file in walk}, walk


@pytest.mark.parametrize("name", ["HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab"])
def test_ham10000_is_recognised_by_its_table(tmp_path: Path, name: str) -> None:
    # Dataverse hands out the same table with tabs
    header = HAM_HEADER.replace(",", "\t") if name.endswith("tab") else HAM_HEADER
    _write(tmp_path / name, header + "\n")
    _write(tmp_path / "HAM10000_images_part_1/ISIC_1.jpg")

    archive = open_archive(tmp_path)

    assert archive.layout is Layout.HAM10000
    assert archive.columns["image"] == (1,)
    assert archive.columns["dx"] == (2,)
    assert archive.columns["age"] == (4,)


def test_an_isic_export_is_recognised_by_its_columns(tmp_path: Path) -> None:
    _write(tmp_path / "metadata.csv", ISIC_HEADER + "\n")

    archive = open_archive(tmp_path)

    assert archive.layout is Layout.ISIC
    # The most specific diagnosis comes first
    assert archive.columns["dx"] == (4, 3)
    assert archive.columns["localization"] == (2,)


def test_a_folder_without_a_table_is_bare(tmp_path: Path) -> None:
    _write(tmp_path / "a/b/c.jpg")
    _write(tmp_path / "notes.csv", "whatever,else\n")

    assert open_archive(tmp_path).layout is Layout.BARE


def test_any_table_is_read_by_the_columns_that_the_user_names(tmp_path: Path) -> None:
    # Given a table with a German header and semicolons, alone in the root
    _write(tmp_path / "liste.csv", "Datei;Alter;Geschlecht\n")

    archive = open_archive(tmp_path, columns=parse_columns("image=Datei,age=alter"))

    assert archive.layout is Layout.TABLE
    assert archive.columns == {"image": (0,), "age": (1,)}


def test_a_table_may_lie_outside_of_the_archive(tmp_path: Path) -> None:
    table = _write(tmp_path / "elsewhere/t.csv", "isic_id,sex\n")
    (tmp_path / "root").mkdir()

    archive = open_archive(tmp_path / "root", metadata=table)

    assert archive.layout is Layout.ISIC
    assert archive.root == (tmp_path / "root").resolve()


def test_an_archive_that_is_not_there_is_a_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArchiveProblem, match="check the path"):
        open_archive(tmp_path / "missing")
    with pytest.raises(ArchiveProblem, match="check the path"):
        open_archive(_write(tmp_path / "file.jpg"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("\n\na,b\n", "blank line"),
        ("isic_id,sex,sex\n", "twice"),
        ("name,years\n", "--columns"),
        ("a\0b,c\n", "no header"),
        ("x" * 70_000, "no header"),
    ],
)
def test_a_table_that_cannot_be_used_says_what_to_do(tmp_path: Path, text: str, sentence: str) -> None:
    _write(tmp_path / "metadata.csv", text)

    with pytest.raises(TableProblem, match=sentence):
        open_archive(tmp_path)


def test_a_table_in_utf16_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes("isic_id,sex\n".encode("utf-16"))

    with pytest.raises(TableProblem, match="save it as CSV UTF-8"):
        open_archive(tmp_path)


def test_a_missing_or_forbidden_table_is_a_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(TableProblem, match="--metadata"):
        open_archive(tmp_path, metadata=tmp_path / "no.csv")
    with pytest.raises(TableProblem, match="--metadata"):
        open_archive(tmp_path, metadata=tmp_path)


def test_several_tables_are_not_guessed_at(tmp_path: Path) -> None:
    _write(tmp_path / "a.csv", "f\n")
    _write(tmp_path / "b.csv", "f\n")

    with pytest.raises(TableProblem, match="--metadata"):
        open_archive(tmp_path, columns={"image": "f"})


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "t.csv", "file,years\n")

    with pytest.raises(TableProblem, match="no column nope; it has: file, years"):
        open_archive(tmp_path, columns={"image": "file", "age": "nope"})


@pytest.mark.parametrize("text", ["image", "image=", "picture=a", "image=a,image=b", "age=a", "", "=,=", "image:a"])
def test_columns_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(TableProblem, match="--columns"):
        parse_columns(text)


def test_no_columns_are_no_columns() -> None:
    assert parse_columns(None) == {}
    assert parse_columns(" image = a , dx=b ") == {"image": "a", "dx": "b"}


def test_images_are_found_in_all_folders_and_others_are_counted(tmp_path: Path) -> None:
    # Given images with every ending, at every depth, and other files
    names = ["a.jpg", "b/c.JPEG", "b/d/e.Png", "f.dcm", "g g/ä.jpg"]
    for name in [*names, "x.txt", "y.TXT", "noending", "b/Thumbs.db", "a.jpg.bak"]:
        _write(tmp_path / name)

    found, walk = _walk(tmp_path)

    assert found == dict.fromkeys(names)
    assert dict(walk.ignored) == {"txt": 2, "(none)": 1, "db": 1, "bak": 1}


def test_the_table_itself_is_not_an_ignored_file(tmp_path: Path) -> None:
    _write(tmp_path / "metadata.csv", ISIC_HEADER + "\n")

    _found, walk = _walk(tmp_path)

    assert dict(walk.ignored) == {}


def test_links_and_pipes_are_items_that_are_never_opened(tmp_path: Path) -> None:
    # Given links to a file and to folders, one of them a loop, and a pipe and a directory named like images
    root = tmp_path / "root"
    root.mkdir()
    _write(tmp_path / "outside/secret.jpg")
    (root / "file.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    (root / "broken.jpg").symlink_to("nowhere")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.jpg")
    _write(root / "directory.jpg/inside.jpg")

    found, _walked = _walk(root)

    # Then nothing outside is found, and everything inside is accounted for
    assert found == {
        "file.jpg": "symlink",
        "broken.jpg": "symlink",
        "pipe.jpg": "not_a_regular_file",
        "directory.jpg/inside.jpg": None,
    }


def test_a_name_that_is_no_text_is_an_item_with_a_reason(tmp_path: Path) -> None:
    # Given a name in Latin-1
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcller.jpg"))).write_bytes(b"x")

    found, _walked = _walk(tmp_path)

    assert list(found.values()) == ["unreadable_name"]
    assert os.fsencode(next(iter(found))) == b"m\xfcller.jpg"


class _Failing:
    """Lists folders, but fails at one."""

    def __init__(self, where: str, number: int) -> None:
        self._where, self._number = where, number
        self._scandir = os.scandir

    def __call__(self, path: Path) -> Any:
        if path.name == self._where:
            raise OSError(self._number, "no")
        return self._scandir(path)


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "closed/a.jpg")
    _write(tmp_path / "b.jpg")
    monkeypatch.setattr(os, "scandir", _Failing("closed", errno.EACCES))

    found, walk = _walk(tmp_path)

    assert found == {"b.jpg": None}
    assert walk.unreadable_folders == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_is_away_is_no_empty_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    _write(tmp_path / "away/a.jpg")
    monkeypatch.setattr(os, "scandir", _Failing("away", number))

    with pytest.raises(ServiceProblem, match="mounted"):
        _walk(tmp_path)


def _rows(path: Path) -> list[tuple[int, tuple[str, ...] | None]]:
    return [(row.line, row.cells) for row in read_rows(open_table(path))]


@pytest.mark.parametrize(
    "data",
    [
        "id,ort\r\n1,Fuß\r\n".encode(),
        "\ufeffid,ort\n1,Fuß\n".encode(),
        "id,ort\n1,Fuß".encode(),
        "id,ort\n1,Fuß\n".encode("latin-1"),
        "id;ort\n1;Fuß\n".encode(),
        '"id","ort"\n"1","Fuß"\n\n\n'.encode(),
        b"id,ort\r1,Fu\xc3\x9f\r",
    ],
    ids=["crlf", "bom", "no last newline", "latin-1", "semicolon", "quotes and blank lines", "old mac"],
)
def test_every_way_to_write_a_table_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)

    assert open_table(path).header == ("id", "ort")
    assert [cells for _line, cells in _rows(path)] == [("1", "Fuß")]


def test_rows_know_their_line_and_bad_ones_are_passed_on(tmp_path: Path) -> None:
    # Given short and long rows, a blank line, and a cell with a newline in it
    path = _write(tmp_path / "t.csv", 'a,b\n1,2\n1\n\n1,2,3\n"x\ny",2\n3,4\n')

    assert _rows(path) == [(2, ("1", "2")), (3, None), (5, None), (6, ("x\ny", "2")), (8, ("3", "4"))]


def test_a_quote_that_is_never_closed_costs_some_rows_and_not_the_table(tmp_path: Path) -> None:
    # Given an open quote on line 3 of a long table
    lines = [f"{number},x" for number in range(100_000)]
    lines[1] = '"1,x'
    path = _write(tmp_path / "t.csv", "a,b\n" + "\n".join(lines) + "\n")

    rows = _rows(path)

    # Then that row is reported with its line, and reading goes on behind what it swallowed
    assert rows[1] == (3, None)
    assert rows[-1] == (100_001, ("99999", "x"))
    assert len(rows) > 50_000


@pytest.fixture
def ham() -> Archive:
    root = Path(__file__).parents[3] / "shared" / "ham10000"
    if not root.is_dir():
        pytest.skip("the HAM10000 copy is not beside the checkout")
    return open_archive(root)


@pytest.mark.shared
def test_the_real_ham10000_is_recognised_and_complete(ham: Archive) -> None:
    assert ham.layout is Layout.HAM10000
    assert sum(file.rejected is None for file in Walk(ham)) == 10_015
