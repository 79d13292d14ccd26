"""Rehashing: reads a batch's files again and compares them with what was scored."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from db.results import iter_digests
from producer.errors import ServiceProblem
from producer.objects import say_away
from producer.paths import open_below
from worker.dicomweb import DicomWebPlace
from worker.objects import ObjectFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A file that is not what was scored."""

    #: For the user's eyes only.
    path: str
    #: `changed_file`, `missing_file` or `unreadable_file`.
    kind: str


def rehash_files(
    engine: Engine,
    batch_id: int,
    root: Path | ObjectFolder | DicomWebPlace,
    on_file: Callable[[int], None] | None = None,
) -> Iterator[Difference]:
    """Compare the files of a batch with the digests in the ledger; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        root: Where this host has the archive: a folder, a place on object storage, or a PACS.
        on_file: Told how many files were compared.

    Yields:
        Every file that differs, is gone, or cannot be read (no permission, an I/O error, no regular file).

    Raises:
        ServiceProblem: If the archive does not answer.
    """
    before: tuple[str, str] | None = None
    for number, (path, digest) in enumerate(iter_digests(engine, batch_id), start=1):
        # The frames of one file follow one another.
        kind = _compare(root, path, digest) if (path, digest) != before else None
        before = path, digest
        if kind is not None:
            yield Difference(path=path, kind=kind)
        if on_file is not None:
            on_file(number)


def _compare(root: Path | ObjectFolder | DicomWebPlace, path: str, digest: str) -> str | None:
    try:
        with open_below(root, path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if not isinstance(root, Path) and error.errno == errno.EIO:
            raise say_away(root) from error
        check_root(root)
        return "missing_file" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "unreadable_file"
    return None if found == digest else "changed_file"


def check_root(root: Path | ObjectFolder | DicomWebPlace) -> None:
    """Make sure of an archive before a file of it is said to be missing.

    Args:
        root: Where this host has it.

    Raises:
        ServiceProblem: If it does not answer, or is an empty mount point.
    """
    if not isinstance(root, Path):
        if root.answers():
            return
        raise say_away(root)
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass
    raise ServiceProblem("The archive does not answer; check that it is mounted, and run again.")
