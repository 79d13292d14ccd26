"""Exports: cells that are harmless, values without the prior, files that are whole."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from db.batches import BatchRow
from db.counts import Counts
from db.results import ReportRow
from db.tables import CLASSES, BatchState, ItemState
from producer.errors import UsageProblem
from producer.export import COLUMNS, ISIC_COLUMNS, csv_cells, escape_cell, replace_file, without_prior
from producer.manifest import Problem
from producer.report import print_problems, printable, write_problems
from producer.status import make_status


def _row(name: str, *, scored: bool = True) -> ReportRow:
    return ReportRow(
        item_id=1,
        image_id=name,
        path=f"{name}.jpg",
        state=ItemState.DONE if scored else ItemState.REJECTED,
        reason=None if scored else "truncated",
        diagnosis="mel" if scored else None,
        confidence=0.5 if scored else None,
        malignant_score=0.25 if scored else None,
        referred=False if scored else None,
        refer_reason=None,
        probabilities=(0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1) if scored else None,
        model_digest="a" * 64,
        age=None,
        sex=None,
        localization=None,
        lesion_id=None,
        label=None,
    )


def test_the_columns_are_those_that_other_programs_read() -> None:
    assert ",".join(COLUMNS) == (
        "image_id,path,state,reason,diagnosis,confidence,malignant_score,referred,refer_reason,"
        "p_akiec,p_bcc,p_bkl,p_df,p_mel,p_nv,p_vasc,model"
    )
    assert {name.lower() for name in ISIC_COLUMNS[1:]} == set(CLASSES)


@given(st.text(st.characters(exclude_categories=[])))
def test_no_text_cell_is_a_formula_and_every_one_can_be_read_back(text: str) -> None:
    # If any text, lone surrogates included, is written as a cell
    cell = escape_cell(text)
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell, "end"])
    cell.encode("utf-8")

    # Then a spreadsheet sees no formula, and a reader sees the cell
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == [cell, "end"]


_signs = st.lists(
    st.sampled_from(["=", "+", "-", "@", "\uff1d", ";", ",", "\t", "\r", "\n", '"', "'", "a", " "]), max_size=8
)


@given(_signs.map("".join), st.sampled_from([",", ";", "\t"]))
def test_no_cell_is_a_formula_whatever_the_spreadsheet_takes_for_a_separator(text: str, separator: str) -> None:
    # Given a row with foreign text in it
    file = io.StringIO(newline="")
    csv.writer(file).writerow(["first", escape_cell(text), "last"])

    # If a spreadsheet reads it by the separator of its country
    cells = [cell for row in csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=separator) for cell in row]

    # Then no cell begins as a formula does
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\uff1d"))]


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "\uff1dcmd()", "\uff201"])
def test_a_file_named_like_a_formula_gets_an_apostrophe(name: str) -> None:
    cells = csv_cells(_row(name))

    assert cells[0].startswith(f"'{name[0]}")
    assert cells[1] == f"{cells[0]}.jpg"


def test_numbers_are_left_alone_and_nothing_is_put_where_there_is_no_verdict() -> None:
    scored = dict(zip(COLUMNS, csv_cells(_row("a")), strict=True))
    rejected = dict(zip(COLUMNS, csv_cells(_row("a", scored=False)), strict=True))

    assert (scored["confidence"], scored["referred"], scored["p_mel"]) == ("0.5", "false", "0.4")
    assert (rejected["reason"], rejected["state"]) == ("truncated", "rejected")
    assert [rejected[name] for name in COLUMNS[4:-1]] == [""] * 12


@given(st.lists(st.floats(0.001, 1), min_size=7, max_size=7), st.lists(st.floats(0.001, 1), min_size=7, max_size=7))
def test_taking_the_prior_out_gives_shares_whose_largest_is_the_largest_ratio(
    weights: list[float], prior: list[float]
) -> None:
    probabilities = tuple(weight / sum(weights) for weight in weights)
    values = without_prior(probabilities, dict(zip(CLASSES, prior, strict=True)))

    ratios = {name: p / pi for name, p, pi in zip(CLASSES, probabilities, prior, strict=True)}
    assert sum(values.values()) == pytest.approx(1)
    assert max(values.values()) == values[max(ratios, key=lambda name: ratios[name])]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    # Given an older export
    out = tmp_path / "deep/er/out.csv"
    with replace_file(out) as file:
        file.write("old")

    # If writing the new one fails half-way
    with pytest.raises(TypeError), replace_file(out) as file:
        file.writelines(["half", 7])

    # Then the older one is untouched, nothing else lies there, and only its owner may read it
    assert out.read_text() == "old"
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_mode & 0o077 == 0


def test_a_place_that_cannot_be_written_is_a_plain_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(UsageProblem, match="--out"), replace_file(tmp_path / "file/out.csv"):
        pass


def test_foreign_text_cannot_command_the_terminal() -> None:
    # Given a file name with an escape sequence and markup in it
    text = printable("\x1b[2J[bold]a[/bold]\n\udcff.jpg")

    # If it is printed
    file = io.StringIO()
    Console(file=file, width=200).print(text)

    # Then it is one line of letters
    assert file.getvalue() == "�[2J[bold]a[/bold]�\\udcff.jpg\n"


def test_problems_are_counted_and_the_first_lines_named() -> None:
    file = io.StringIO()
    problems = [Problem(line=number, reason="bad_age", image="SECRET") for number in range(2, 40)]

    print_problems(
        Console(file=file, width=200), {"bad_age": 38, "image_without_row": 2}, problems, whole="--problems FILE"
    )

    assert "line 2: bad_age" in file.getvalue()
    assert "… and 28 more; --problems FILE lists all." in file.getvalue()
    assert "SECRET" not in file.getvalue()


def test_every_problem_is_listed_with_line_and_reason(tmp_path: Path) -> None:
    problems = [
        Problem(line=3, reason="bad_age", image="=x"),
        Problem(line=None, reason="image_without_row", image="b"),
    ]

    write_problems(tmp_path / "p.csv", problems)

    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "line,reason,image",
        "3,bad_age,'=x",
        ",image_without_row,b",
    ]


def test_a_status_has_exactly_the_promised_names_and_adds_up() -> None:
    batch = BatchRow(
        id=1,
        name="n",
        source="/s",
        state=BatchState.OPEN,
        priority=0,
        model_digest="a" * 64,
        manifest_digest="b" * 64,
        created_at=0.0,
        items=10,
        chunks=1,
    )
    counts = Counts(found=10, open=1, done=4, referred=2, rejected=2, quarantined=1, seconds=3.0)

    status = make_status(batch, counts)

    assert list(status.as_json()) == [
        *("batch", "model", "found", "open", "done", "referred", "rejected", "quarantined"),
        *("seconds", "images_per_second"),
    ]
    assert status.images_per_second == 2.0
    assert (status.finished, status.exit_code) == (False, 1)
