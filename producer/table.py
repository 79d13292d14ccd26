"""Metadata tables: reads a CSV row by row, whatever its encoding, and says which rows cannot be read and why."""

import codecs
import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from producer.errors import TableProblem

#: What a table can say about an image, as `--columns` names it.
ROLES = ("image", "age", "sex", "localization", "lesion_id", "patient_ref", "dx")

#: Bytes read at once while the encoding is found.
_BLOCK = 1 << 20

#: A header line longer than this is no header: somebody named an image or a database as the table.
_LONGEST_HEADER = 1 << 16

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that was looked at: where it lies and how it is written."""

    path: Path
    #: `utf-8-sig` or `latin-1`.
    encoding: str
    #: Comma, semicolon or tab.
    delimiter: str
    header: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of a table; cells are None where the row cannot be read."""

    #: The line it begins on; the header is line 1.
    line: int
    cells: tuple[str, ...] | None
    #: Why it cannot be read.
    reason: str | None = None


def open_table(path: Path, called: str = "The metadata table", named: str = "the path given with --metadata") -> Table:
    """Look at a table's encoding and header.

    Args:
        path: The table.
        called: What it is to the user, to begin a sentence with.
        named: How the user named it.

    Returns:
        How to read it.

    Raises:
        TableProblem: If it is not readable, empty, UTF-16, or has a column name twice.
    """
    try:
        encoding = _find_encoding(path, called)
        with path.open(encoding=encoding, newline="") as file:
            first = file.readline(_LONGEST_HEADER)
    except OSError:
        raise TableProblem(f"{called} cannot be opened; check {named}.") from None
    if not first.strip():
        raise TableProblem(f"{called} is empty or begins with a blank line; its first line must name columns.")
    if len(first) >= _LONGEST_HEADER or "\0" in first:
        raise TableProblem(f"{called} has no header line; give a CSV file.")
    delimiter = max(",;\t", key=first.count)
    header = tuple(cell.strip() for cell in next(csv.reader([first], delimiter=delimiter)))
    twice = sorted(name for name, times in Counter(header).items() if name and times > 1)
    if twice:
        raise TableProblem(
            f"{called} names a column twice ({', '.join(twice)}); rename one of them in the first line and run again."
        )
    return Table(path=path, encoding=encoding, delimiter=delimiter, header=header)


def _find_encoding(path: Path, called: str) -> str:
    # The whole file, block by block: one Latin-1 name in the last row of a gigabyte would stop us in the middle.
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        block = file.read(_BLOCK)
        if block.startswith(_UTF16):
            raise TableProblem(f"{called} is written in UTF-16; save it as CSV UTF-8 and run again.")
        try:
            while block:
                decoder.decode(block)
                block = file.read(_BLOCK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8-sig"


def read_rows(table: Table) -> Iterator[TableRow]:
    """Stream a table's rows; blank lines are no rows.

    A quote that is never closed costs the rows that it swallows (at most 128 Ki characters), which are reported as one.

    Args:
        table: From `open_table`.

    Yields:
        Every row, those that cannot be read included.
    """
    width = len(table.header)
    with table.path.open(encoding=table.encoding, newline="") as file:
        reader = csv.reader(file, delimiter=table.delimiter)
        next(reader)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield TableRow(line=line, cells=None, reason="unreadable_row")
                continue
            if not cells:
                continue
            if len(cells) != width:
                yield TableRow(line=line, cells=None, reason="wrong_number_of_cells")
            else:
                yield TableRow(line=line, cells=tuple(cells))


def parse_columns(text: str | None) -> dict[str, str]:
    """Read the value of `--columns`.

    Args:
        text: For example `image=file,age=years`.

    Returns:
        Role to column name; empty where nothing was given.

    Raises:
        TableProblem: If a role is unknown or given twice, or the image's column is missing.
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        role, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name or role not in ROLES:
            raise TableProblem(f"--columns takes ROLE=COLUMN pairs with the roles {', '.join(ROLES)}.")
        if role in columns:
            raise TableProblem(f"--columns names the role {role} twice.")
        columns[role] = name
    if text is not None and "image" not in columns:
        raise TableProblem("--columns must say which column names the image: image=COLUMN.")
    return columns
