"""`lesion-screen label`: feeds confirmed diagnoses back; imported when it is called."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from db.labels import LabelRow, add_labels, confirmed_images
from producer.errors import EXIT_DONE, EXIT_SOME_FAILED, TableProblem
from producer.ledger import open_existing, read_place
from producer.manifest import Problem
from producer.report import write_problems
from producer.table import TableRow, open_table, read_rows
from producer.terminal import name_actor, open_console, print_json

#: Columns that the file must have, in any order.
COLUMNS: Final = ("image_id", "dx", "dx_type", "who", "when")

#: Lines that are named on the terminal.
_SHOWN: Final = 10

#: HAM10000's codes, its long names, and the ISIC Archive's.
_DIAGNOSES: Final = {
    "akiec": "akiec",
    "actinic keratosis": "akiec",
    "solar or actinic keratosis": "akiec",
    "bowen's disease": "akiec",
    "squamous cell carcinoma in situ": "akiec",
    "bcc": "bcc",
    "basal cell carcinoma": "bcc",
    "bkl": "bkl",
    "benign keratosis": "bkl",
    "pigmented benign keratosis": "bkl",
    "seborrheic keratosis": "bkl",
    "solar lentigo": "bkl",
    "lichen planus like keratosis": "bkl",
    "df": "df",
    "dermatofibroma": "df",
    "mel": "mel",
    "melanoma": "mel",
    "nv": "nv",
    "nevus": "nv",
    "melanocytic nevus": "nv",
    "vasc": "vasc",
    "vascular lesion": "vasc",
    "hemangioma": "vasc",
    "angioma": "vasc",
}

#: HAM10000's codes, and the ISIC Archive's words for how a diagnosis was confirmed.
_DX_TYPES: Final = {
    "histo": "histo",
    "histopathology": "histo",
    "confocal": "confocal",
    "confocal microscopy with consensus dermoscopy": "confocal",
    "consensus": "consensus",
    "single image expert consensus": "consensus",
    "follow_up": "follow_up",
    "serial imaging showing no change": "follow_up",
}

_PLAIN: Final = {
    "unknown_image": "lines that name no image of the batch",
    "ambiguous_image": "lines whose image is in the batch several times",
    "unknown_diagnosis": "lines whose dx is none of the seven classes",
    "unknown_dx_type": "lines whose dx_type is not histo, confocal, consensus or follow_up",
    "nobody_named": "lines that do not say who made the diagnosis",
    "bad_date": "lines whose date is no ISO 8601 date of the past, such as 2026-01-31",
    "no_image_named": "lines that name no image",
}


def label(batch_id: int, file: Path, *, problems: Path | None, as_json: bool) -> int:
    """Do `lesion-screen label`.

    Args:
        batch_id: The batch whose images were diagnosed.
        file: CSV with the columns `COLUMNS`.
        problems: A CSV file to list every line in that was not used.
        as_json: Print JSON alone.

    Returns:
        0, or 1 where a line was not used or diagnoses contradict each other.
    """
    engine, console = open_existing(read_place()), open_console(quiet=as_json)
    reader = _Reader(file)
    labelled = add_labels(engine, batch_id, reader.rows(), name_actor())
    odd = sorted([*reader.problems, *labelled.problems])
    confirmed = confirmed_images(engine, batch_id)
    counts = Counter(reason for _, reason in odd)
    if problems is not None:
        write_problems(problems, (Problem(line=line, reason=reason, image=None) for line, reason in odd))
    if as_json:
        print_json(
            {
                "batch": batch_id,
                "added": labelled.added,
                "known": labelled.known,
                "problems": dict(sorted(counts.items())),
                "confirmed": len(confirmed.images),
                "conflicting": len(confirmed.conflicting),
            }
        )
    console.print(f"{labelled.added:,} diagnoses are new, {labelled.known:,} were there already.", highlight=False)
    for reason, count in sorted(counts.items()):
        console.print(f"  {count:>7,}  {_PLAIN.get(reason, reason)} (not used)", highlight=False)
    for line, reason in odd[:_SHOWN]:
        console.print(f"  line {line}: {reason}", highlight=False)
    if len(odd) > _SHOWN:
        console.print(f"  … and {len(odd) - _SHOWN:,} more; --problems FILE lists all.", highlight=False)
    console.print(f"{len(confirmed.images):,} images of the batch can be learned from.", highlight=False)
    if confirmed.conflicting:
        console.print(
            f"{len(confirmed.conflicting):,} cannot: diagnoses of the image or its lesion contradict each other. "
            "A better founded one settles it.",
            highlight=False,
        )
    return EXIT_SOME_FAILED if odd or confirmed.conflicting else EXIT_DONE


class _Reader:
    """Reads a file of diagnoses; what it cannot use it notes with its line.

    Args:
        file: The CSV file.

    Raises:
        TableProblem: If it cannot be read, or lacks a column.
    """

    def __init__(self, file: Path) -> None:
        self._table = open_table(file, "The file of diagnoses", "its path")
        header = [name.strip().lower() for name in self._table.header]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise TableProblem(
                f"The file lacks the column {', '.join(missing)}; it needs {', '.join(COLUMNS)} in its first line."
            )
        self._places = {name: header.index(name) for name in COLUMNS}
        self.problems: list[tuple[int, str]] = []

    def rows(self) -> Iterator[LabelRow]:
        """Stream the lines that can be used."""
        for row in read_rows(self._table):
            read = self._read(row)
            if isinstance(read, str):
                self.problems.append((row.line, read))
            else:
                yield read

    def _read(self, row: TableRow) -> LabelRow | str:
        if row.cells is None:
            return row.reason or "unreadable_row"
        cells = {name: row.cells[place].strip() for name, place in self._places.items()}
        dx, dx_type = _DIAGNOSES.get(cells["dx"].lower()), _DX_TYPES.get(cells["dx_type"].lower())
        labelled_on = _read_date(cells["when"])
        missing = {
            "no_image_named": not cells["image_id"],
            "unknown_diagnosis": dx is None,
            "unknown_dx_type": dx_type is None,
            "nobody_named": not cells["who"],
            "bad_date": labelled_on is None,
        }
        if dx is None or dx_type is None or labelled_on is None or any(missing.values()):
            return next(reason for reason, is_so in missing.items() if is_so)
        return LabelRow(
            line=row.line,
            image_id=cells["image_id"],
            dx=dx,
            dx_type=dx_type,
            labelled_by=cells["who"],
            labelled_on=labelled_on,
        )


def _read_date(text: str) -> str | None:
    try:
        found = datetime.fromisoformat(text).date()
    except ValueError:
        return None
    # Somewhere it is tomorrow already.
    return found.isoformat() if found <= datetime.now(UTC).date() + timedelta(days=1) else None
