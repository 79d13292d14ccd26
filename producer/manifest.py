"""The manifest: files and metadata rows of an archive, joined and accounted for in a temporary database on disk."""

import errno
import hashlib
import json
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from db.batches import ItemRow
from producer import staging
from producer.archive import Archive, FoundFile, Walk
from producer.dicom import DicomRecord
from producer.dicom_sites import same_site
from producer.objects import say_away
from producer.pacs import STUDY_NOT_LISTED, PacsListing
from producer.paths import open_below, split_suffix
from producer.records import Record, read_record
from producer.table import read_rows
from worker.dicomweb import DicomWebPlace
from worker.objects import ObjectFolder

#: Rows handed to SQLite at once, and the step of the progress report.
_MANY = 10_000
#: Ages this close are one: the ISIC Archive and HAM10000 round to five years, and a birthday may lie between.
_SAME_AGE_YEARS = 3.5
#: Bytes read of a file at three places, to tell copies from namesakes.
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something odd in the table or the archive, for the user's eyes only."""

    #: Line of the table; None where it is about a file.
    line: int | None
    reason: str
    #: What the table or the archive calls the image: never to be logged.
    image: str | None


class Manifest:
    """All files and rows of one archive, staged on disk, so that memory stays flat whatever the archive's size.

    SQLite makes the database in the temporary folder and unlinks it at once: a killed producer leaves no patient's
    data behind.

    Args:
        archive: What to read.
        on_progress: Told now and then how many files and rows were read.

    Raises:
        ServiceProblem: If the archive does not answer.
    """

    def __init__(self, archive: Archive, on_progress: Callable[[int], None] | None = None) -> None:
        self.archive = archive
        self._read = 0
        self._on_progress = on_progress or (lambda _count: None)
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(f"{staging.PREPARE} {staging.SCHEMA}")
        found = PacsListing(archive.root) if isinstance(archive.root, DicomWebPlace) else Walk(archive)
        self._stage_files(found)
        self._stage_rows()
        self._join()
        #: Files that are no items, by ending; of a PACS what is no image, by modality.
        self.ignored: dict[str, int] = dict(sorted(found.ignored.items()))
        for _ in range(0 if isinstance(found, PacsListing) else found.unreadable_folders):
            self._note(None, "unreadable_folder", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete what was staged."""
        self._base.close()

    def _stage_files(self, found: Walk | PacsListing) -> None:
        files = self._list_instances(found) if isinstance(found, PacsListing) else found
        self._insert(staging.INSERT_FILE, self._read_files(files))

    def _stage_rows(self) -> None:
        if self.archive.table is not None:
            self._insert(staging.INSERT_RECORD, self._read_records())

    def _list_instances(self, listing: PacsListing) -> Iterator[FoundFile]:
        for one in listing:
            if one.path is None:
                self._base.execute(staging.INSERT_UNLISTED, (one.study_uid, one.rejected))
                self._note(None, one.rejected or STUDY_NOT_LISTED, one.study_uid)
            else:
                header = one.read()
                yield FoundFile(path=one.path, size=None, mtime_ns=None, rejected=header.rejected, header=header)

    def _read_files(self, files: Iterable[FoundFile]) -> Iterator[tuple[Any, ...]]:
        for file in files:
            for reason in file.header.problems if file.header else ():
                self._note(None, reason, file.path)
            yield _file_values(file)

    def _insert(self, statement: str, rows: Iterator[tuple[Any, ...]]) -> None:
        self._base.execute("BEGIN")
        self._base.executemany(statement, self._counted(rows))
        self._base.execute("COMMIT")

    def _counted(self, rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for row in rows:
            self._read += 1
            if self._read % _MANY == 0:
                self._on_progress(self._read)
            yield row

    def _read_records(self) -> Iterator[tuple[Any, ...]]:
        if self.archive.table is None:
            return
        for row in read_rows(self.archive.table):
            if row.cells is None:
                self._note(row.line, row.reason or "unreadable_row", None)
                continue
            record, reasons = read_record(row.line, row.cells, self.archive.columns)
            for reason in reasons:
                self._note(row.line, reason, record.image if record else None)
            if record is not None:
                yield _record_values(record)

    def _note(self, line: int | None, reason: str, image: str | None) -> None:
        self._base.execute(staging.INSERT_PROBLEM, (line, reason, image))

    def _join(self) -> None:
        self._base.executescript(f"{staging.INDEXES} {staging.MATCH} {staging.LOSERS} {staging.ALIKE}")
        self._sample_alike()
        self._base.executescript(staging.SHARED)
        for path, *values in self._base.execute(staging.LIST_HEADERS):
            if not _agree(*values):
                self._note(None, "header_differs", os.fsdecode(path))

    def _sample_alike(self) -> None:
        # Read in one statement, written in another: the list is as long as the archive in Kaggle's copy of HAM10000.
        self._base.execute("BEGIN")
        for path, size in self._counted(self._base.execute(staging.LIST_ALIKE)):
            sample = _sample(self.archive.root, os.fsdecode(path), size)
            self._base.execute(staging.SET_SAMPLE, (sample, path))
        self._base.execute("COMMIT")

    def items(self) -> Iterator[ItemRow]:
        """Stream every item: files by path, then rows without a file, then what a PACS could not list.

        Returns:
            An iterator; it may be asked for several times.
        """
        for path, size, mtime_ns, rejected, image, _by_path, *values in self._base.execute(staging.FILES):
            name = os.fsdecode(path)
            image_id = split_suffix(image if image is not None and not _by_path else name.rpartition("/")[2])[0]
            *said, frames, study, series, instance = values
            one = _item(name, size, mtime_ns, rejected, image_id, said, (study, series, instance))
            for frame in range(1, frames + 1):
                yield one if frames == 1 else replace(one, frame=frame, image_id=f"{image_id}#{frame}")
        for rejected, key, suffix, image, by_path, *values in self._base.execute(staging.LONE_ROWS):
            path = (f"{key}.{suffix}" if suffix else key) if by_path and key else None
            image_id = image if rejected != "missing_image" else key.rpartition("/")[2]
            yield _item(path, None, None, rejected, image_id, values)
        for study, rejected in self._base.execute(staging.LIST_UNLISTED):
            yield ItemRow(path=None, image_id=study, study_uid=study, rejected=rejected)

    def count(self) -> int:
        """Count the items.

        Returns:
            How many `items` streams.
        """
        return int(self._base.execute(staging.COUNT_ITEMS).fetchone()[0])

    def digest(self) -> str:
        """Digest everything that makes this archive what it is.

        Returns:
            sha256 over path, size, mtime and metadata row of every item, in order of the path; of a DICOM object over
            its instance and frame too.
        """
        digest = hashlib.sha256(b"lesion-screen manifest 1\n")
        for item in self.items():
            row: list[Any] = [item.path, item.size, item.mtime_ns, item.rejected, item.image_id]
            row += [item.lesion_id, item.patient_ref, item.age, item.sex, item.localization, item.label]
            if item.instance_uid is not None or item.frame is not None:
                # Only here, so that an archive without DICOM is the one that an earlier version submitted.
                row += [item.instance_uid, item.frame]
            digest.update(json.dumps(row).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def problem_counts(self) -> dict[str, int]:
        """Count what is odd, by reason.

        Returns:
            Reason to count; `image_without_row` is one of them where there is a table.
        """
        counts = dict(self._base.execute(staging.PROBLEM_COUNTS))
        lone = self._base.execute(staging.COUNT_FILES_WITHOUT_ROW).fetchone()[0]
        if lone and self.archive.table is not None:
            counts["image_without_row"] = lone
        return counts

    def problems(self) -> Iterator[Problem]:
        """Stream what is odd: by line first, then the files that no row is about.

        Returns:
            An iterator.
        """
        for line, reason, image in self._base.execute(staging.LIST_PROBLEMS):
            yield Problem(line=line, reason=reason, image=image)
        if self.archive.table is not None:
            lone = self._base.execute(staging.LIST_FILES_WITHOUT_ROW)
            for (path,) in lone:
                yield Problem(line=None, reason="image_without_row", image=os.fsdecode(path))


def _item(
    path: str | None,
    size: int | None,
    mtime_ns: int | None,
    rejected: str | None,
    image_id: str,
    values: list[Any],
    uids: tuple[str | None, ...] = (None, None, None),
) -> ItemRow:
    age, sex, localization, lesion_id, patient_ref, label = values
    study_uid, series_uid, instance_uid = uids
    return ItemRow(
        path=path,
        size=size,
        mtime_ns=mtime_ns,
        image_id=image_id,
        lesion_id=lesion_id,
        patient_ref=patient_ref,
        age=age,
        sex=sex,
        localization=localization,
        label=label,
        rejected=rejected,
        study_uid=study_uid,
        series_uid=series_uid,
        instance_uid=instance_uid,
    )


def _sample(root: Path | ObjectFolder | DicomWebPlace, path: str, size: int) -> bytes | None:
    """Digest the start, the middle and the end of a file: two images of one size differ there, if they differ.

    Returns:
        sha256, or None where the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_below(root, path) as file:
            for start in (0, max(size - _SAMPLE_BYTES, 0) // 2, max(size - _SAMPLE_BYTES, 0)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        if not isinstance(root, Path) and error.errno == errno.EIO:
            raise say_away(root) from error
        return None
    return digest.digest()


def _key(text: str) -> str:
    # macOS writes file names decomposed and tables composed; lone surrogates are no text to SQLite.
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())


def _file_values(file: FoundFile) -> tuple[Any, ...]:
    path_key, suffix = split_suffix(file.path)
    # A name that cannot be read cannot be named by a table either.
    keys = (None, None) if file.rejected == "unreadable_name" else (_key(path_key), _key(path_key.rpartition("/")[2]))
    header = file.header or DicomRecord()
    said = (header.age, header.sex, header.localization, header.patient_ref)
    uids = (header.study_uid, header.series_uid, header.instance_uid)
    return os.fsencode(file.path), file.size, file.mtime_ns, file.rejected, *keys, suffix, header.frames, *uids, *said


def _agree(
    age: float | None,
    header_age: float | None,
    sex: str | None,
    header_sex: str | None,
    site: str | None,
    header_site: str | None,
    patient: str | None,
    header_patient: str | None,
) -> bool:
    """Say whether a row of the table and a DICOM header contradict each other in nothing that both say."""
    if age is not None and header_age is not None and abs(age - header_age) >= _SAME_AGE_YEARS:
        return False
    # Tables write m and f too.
    if sex is not None and header_sex is not None and sex.strip().casefold()[:1] != header_sex[:1]:
        return False
    if site is not None and header_site is not None and not same_site(site, header_site):
        return False
    return patient is None or header_patient is None or patient == header_patient


def _record_values(record: Record) -> tuple[Any, ...]:
    return (
        record.line,
        record.image,
        _key(record.key),
        int(record.by_path),
        record.suffix,
        record.age,
        record.sex,
        record.localization,
        record.lesion_id,
        record.patient_ref,
        record.label,
        record.rejected,
    )
