"""Rehashing: reads a batch's files again and compares them with what was scored."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from db.results import iter_digests
from producer.errors import ServiceProblem
from producer.paths import open_below


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A file that is not what was scored."""

    #: For the user's eyes only.
    path: str
    #: `changed_file` or `missing_file`.
    kind: str


def rehash_files(
    engine: Engine, batch_id: int, root: Path, on_file: Callable[[int], None] | None = None
) -> Iterator[Difference]:
    """Compare the files of a batch with the digests in the ledger; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        root: Where this host has the archive.
        on_file: Told how many files were compared.

    Yields:
        Every file that differs or is gone.

    Raises:
        ServiceProblem: If the archive does not answer.
    """
    for number, (path, digest) in enumerate(iter_digests(engine, batch_id), start=1):
        found = _digest_file(root, path)
        if found is None:
            _check_root(root)
            yield Difference(path=path, kind="missing_file")
        elif found != digest:
            yield Difference(path=path, kind="changed_file")
        if on_file is not None:
            on_file(number)


def _digest_file(root: Path, path: str) -> str | None:
    try:
        with open_below(root, path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _check_root(root: Path) -> None:
    # "Missing" is said only while the root answers and is no empty mount point.
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass
    raise ServiceProblem("The archive does not answer; check that it is mounted, and run again.")
