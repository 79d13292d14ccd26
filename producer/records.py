"""Metadata records: what one row of a table says about one image, with what is wrong in it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from producer.paths import safe_relative, split_suffix

#: Years; nobody is known to have been older than 122, and the model's own range ends here.
OLDEST_YEARS = 120.0

#: Cells that say "not known", which is normal.
_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "unknown", "unk", "-", "?"})

#: No word for a sex, a site or a diagnosis is this long: such a cell is another column's or garbage.
_LONGEST_CELL = 500

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One readable row."""

    line: int
    #: The cell that names the image, as it stands.
    image: str
    #: What is looked for: a file name without ending, or a relative path without ending where `by_path`.
    key: str
    by_path: bool
    #: The image's ending, lower case, where the cell has one.
    suffix: str | None
    age: float | None = None
    sex: str | None = None
    localization: str | None = None
    lesion_id: str | None = None
    patient_ref: str | None = None
    label: str | None = None
    #: Reason code where the row names no sound path.
    rejected: str | None = None


def read_record(
    line: int, cells: tuple[str, ...], columns: Mapping[str, tuple[int, ...]]
) -> tuple[Record | None, list[str]]:
    """Read a row.

    Args:
        line: Where it begins.
        cells: All cells of the row.
        columns: Role to positions.

    Returns:
        The record, or None where the row names no image, and the reason codes of what is wrong in the row.
    """
    image = _first(cells, columns.get("image", ()))
    if image is None:
        return None, ["no_image_named"]
    problems: list[str] = []
    texts = {role: _text(cells, columns.get(role, ()), problems) for role in _TEXT_ROLES}
    age = _age(_first(cells, columns.get("age", ())), problems)
    path = safe_relative(image)
    if path is None or len(image) > _LONGEST_CELL:
        # The row is counted, its path is never opened and its values belong to no file.
        return Record(
            line=line, image=image[:_LONGEST_CELL], key="", by_path=True, suffix=None, rejected="unsafe_path"
        ), [
            *problems,
            "unsafe_path",
        ]
    key, suffix = split_suffix(path)
    return Record(
        line=line,
        image=image,
        key=key,
        by_path="/" in path,
        suffix=suffix,
        age=age,
        sex=texts["sex"],
        localization=texts["localization"],
        lesion_id=texts["lesion_id"],
        patient_ref=texts["patient_ref"],
        label=texts["dx"],
    ), problems


_TEXT_ROLES = ("sex", "localization", "lesion_id", "patient_ref", "dx")


def _first(cells: tuple[str, ...], positions: tuple[int, ...]) -> str | None:
    for position in positions:
        cell = cells[position].strip()
        if cell.casefold() not in _MISSING:
            return cell
    return None


def _text(cells: tuple[str, ...], positions: tuple[int, ...], problems: list[str]) -> str | None:
    cell = _first(cells, positions)
    if cell is not None and len(cell) > _LONGEST_CELL:
        problems.append("cell_too_long")
        return None
    return cell


def _age(cell: str | None, problems: list[str]) -> float | None:
    if cell is None:
        return None
    years = float(cell) if len(cell) < _LONGEST_CELL and _NUMBER.fullmatch(cell) else math.nan
    # A NaN fails the comparison too.
    if not 0 <= years <= OLDEST_YEARS:
        problems.append("bad_age")
        return None
    return years
