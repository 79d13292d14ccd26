"""Paths below an archive's root: which ones a table may name, and opening them without following a link."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from worker.dicomweb import DicomWebPlace
from worker.objects import ObjectFolder

#: Endings of the files that are items, lower case.
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "dcm"})

#: Endings of DICOM objects; of most the name is a number or a UID, which has none.
_DICOM_SUFFIX = re.compile(r"dcm|dicom|dic|ima|\d+", re.IGNORECASE)

#: A drive, a URL, a home folder or an absolute path.
_ELSEWHERE = re.compile(r"[/~]|[A-Za-z]:|file:|[A-Za-z][A-Za-z0-9+.-]*:/", re.IGNORECASE)


def safe_relative(text: str) -> str | None:
    r"""Read a path from a table as one below the archive's root.

    Nothing is resolved and nothing is opened: what could lead out of the root is refused by its text alone.

    Args:
        text: A cell of the table; forward slashes or backslashes.

    Returns:
        The path with forward slashes and without `.` parts, or None where it is absolute, a URL, a drive, a home
        folder, contains `..` or a control character, or names nothing.

    Examples:
        >>> safe_relative(r".\part\a.jpg")
        'part/a.jpg'
        >>> safe_relative("../a.jpg") is None
        True
    """
    slashed = text.replace("\\", "/")
    if any(ord(letter) < ord(" ") or "\ud800" <= letter <= "\udfff" for letter in slashed):
        return None
    parts = [part for part in slashed.split("/") if part not in {"", "."}]
    path = "/".join(parts)
    # Both: `./C:` is a drive once its dot is gone.
    if not parts or ".." in parts or _ELSEWHERE.match(slashed) or _ELSEWHERE.match(path):
        return None
    return path


def split_suffix(name: str) -> tuple[str, str | None]:
    """Split an image's ending off.

    Args:
        name: A file name, or a path with forward slashes.

    Returns:
        The name without its ending, and the ending in lower case; None where it is no image's.
    """
    stem, dot, suffix = name.rpartition(".")
    if dot and suffix.lower() in IMAGE_SUFFIXES and stem.rpartition("/")[2]:
        return stem, suffix.lower()
    return name, None


def may_be_dicom(name: str) -> bool:
    """Say whether a file's first bytes are to be asked whether it is a DICOM object.

    Args:
        name: A file name.

    Returns:
        True for an ending of DICOM's, for one that is a number, and for none.

    Examples:
        >>> may_be_dicom("IM000001"), may_be_dicom("1.2.840.10008.7"), may_be_dicom("a.jpg")
        (True, True, False)
    """
    stem, dot, suffix = name.rpartition(".")
    return not (dot and stem) or _DICOM_SUFFIX.fullmatch(suffix) is not None


@contextmanager
def open_below(root: Path | ObjectFolder | DicomWebPlace, relative: str) -> "Iterator[BufferedReader[Any]]":
    """Open a regular file below a root without following any link on the way.

    Args:
        root: The archive's root: a folder, a place on object storage, or a PACS.
        relative: A path from the ledger.

    Yields:
        The file.

    Raises:
        OSError: If it is not there, is a link or no regular file, or the root is away.
    """
    if not isinstance(root, Path):
        with root.open(relative) as stored:
            yield stored
        return
    parts = relative.split("/")
    if not relative or relative.startswith("/") or ".." in parts or "\0" in relative:
        raise OSError("not a path below the root")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        # Non-blocking: a FIFO that took a file's place must not hold us.
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError("not a regular file")
        yield opened


def nearest_folder(folder: Path) -> Path:
    """Find where something that is not there yet would be made.

    Args:
        folder: Absolute.

    Returns:
        It, or the nearest folder above it that is there.
    """
    return next(one for one in (folder, *folder.parents) if one.exists())
