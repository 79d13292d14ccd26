"""Archives: recognises how one is laid out, and walks it without following links."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from db.settings import full_path
from producer import objects, pacs
from producer.dicom import NO_ITEMS, DicomRecord, read_file
from producer.errors import ArchiveProblem, ServiceProblem, TableProblem
from producer.paths import may_be_dicom, open_below, split_suffix
from producer.table import Table, open_table
from worker.dicomweb import DicomWebPlace, is_pacs
from worker.objects import ObjectFolder
from worker.s3 import StoredObject
from worker.wado import Access

#: HAM10000's table as Kaggle, its own download and Dataverse call it.
_HAM_TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
_ISIC_TABLE = "metadata.csv"

_HAM_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image_id",),
    "age": ("age",),
    "sex": ("sex",),
    "localization": ("localization",),
    "lesion_id": ("lesion_id",),
    "patient_ref": ("patient_id",),
    "dx": ("dx",),
}
_ISIC_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("isic_id",),
    "age": ("age_approx",),
    "sex": ("sex",),
    "localization": ("anatom_site_general",),
    "lesion_id": ("lesion_id",),
    "patient_ref": ("patient_id",),
    # The most specific one that is filled in counts.
    "dx": ("diagnosis_5", "diagnosis_4", "diagnosis_3", "diagnosis_2", "diagnosis_1", "diagnosis"),
}

#: Errors of the disk or the network under an archive, which pass; not of one folder.
_AWAY = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO}
)


class Layout(StrEnum):
    """How an archive is laid out."""

    HAM10000 = "ham10000"
    ISIC = "isic"
    #: Any folder tree with a table whose columns the user named.
    TABLE = "table"
    #: No metadata at all.
    BARE = "bare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An archive that was recognised."""

    #: Absolute, links resolved; or a place on object storage, or a PACS.
    root: Path | ObjectFolder | DicomWebPlace
    layout: Layout
    table: Table | None = None
    #: Role to positions in the table's rows; the first cell that is not empty counts.
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: Path below a root on object storage that the table was copied from.
    table_key: str | None = None
    #: The copy, which is there as long as the archive is.
    table_copy: objects.TableCopy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file that is an item."""

    #: Relative to the root, with forward slashes; bytes that are no UTF-8 are lone surrogates.
    path: str
    #: Bytes.
    size: int | None
    mtime_ns: int | None
    #: Reason code where it will not be opened.
    rejected: str | None = None
    #: What its headers say, of a DICOM object.
    header: DicomRecord | None = None


def open_archive(
    place: Path | str,
    metadata: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    endpoint: str | None = None,
    access: Access | None = None,
) -> Archive:
    """Recognise an archive's layout.

    Args:
        place: Its root: a folder, `s3://bucket/prefix`, or `dicomweb://host/path?filters`.
        metadata: The table, where it does not lie in the root under a known name: a file, or `s3://bucket/key`.
        columns: Role to column name, where the table is neither HAM10000's nor the ISIC Archive's.
        endpoint: Address of the S3 server; None is Amazon's.
        access: How a PACS is spoken to; None is without credentials.

    Returns:
        The archive; of a folder nothing but the table's encoding and header was read.

    Raises:
        ArchiveProblem: If the folder is not there, or the PACS has no such study.
        TableProblem: If there is a table and it cannot be used.
        SettingsError: If the address is not sound, or the extra for it is not installed.
        ServiceProblem: If the object storage or the PACS does not answer.
    """
    root = _open_root(place, endpoint, access or Access())
    source, name = _find_source(root, metadata, endpoint, named=bool(columns))
    if name is None:
        return Archive(root=root, layout=Layout.BARE)
    copy = None if source is None else objects.fetch_table(source, name)
    table = open_table(copy.path if copy else Path(name))
    key = name if source is not None and source == root else None
    archive = Archive(root=root, layout=Layout.BARE, table=table, table_key=key, table_copy=copy)
    return _recognise(archive, table, columns, metadata)


def _open_root(place: Path | str, endpoint: str | None, access: Access) -> Path | ObjectFolder | DicomWebPlace:
    if isinstance(place, Path):
        folder = _resolve(place, "archive")
        if not folder.is_dir():
            raise ArchiveProblem("The archive is not a folder that can be read; check the path.")
        return folder
    if is_pacs(place):
        pacs.insist_on_studies(server := DicomWebPlace.at(place, access))
        return server
    objects.insist_on_objects(storage := ObjectFolder.at(place, endpoint))
    return storage


def _resolve(path: Path, what: str) -> Path:
    try:
        return full_path(path).resolve()
    except ValueError as error:
        raise ArchiveProblem(f"The path of the {what}: {error}.") from None


def _find_source(
    root: Path | ObjectFolder | DicomWebPlace, metadata: Path | str | None, endpoint: str | None, *, named: bool
) -> tuple[ObjectFolder | None, str | None]:
    """Say where the table is: below a place on object storage, or a file; the second is None where there is none."""
    if isinstance(metadata, str):
        folder, _, name = metadata.rpartition("/")
        return ObjectFolder.at(folder, endpoint), name
    if metadata is not None:
        return None, str(_resolve(metadata, "table"))
    if isinstance(root, Path):
        found = _find_table(root, named=named)
        return None, None if found is None else str(found.resolve())
    if isinstance(root, DicomWebPlace):
        if named:
            raise TableProblem("A PACS has no table; say which one --columns is about with --metadata FILE.")
        return None, None
    key = objects.find_table(root, (*_HAM_TABLES, _ISIC_TABLE))
    if key is None and named:
        raise TableProblem("No known table lies in the archive's root; say which one with --metadata s3://BUCKET/KEY.")
    return root, key


def _recognise(
    archive: Archive, table: Table, columns: Mapping[str, str] | None, metadata: Path | str | None
) -> Archive:
    if columns:
        named = _positions(table, {role: (name,) for role, name in columns.items()}, strict=True)
        return replace(archive, layout=Layout.TABLE, columns=named)
    if "isic_id" in table.header:
        layout, known = Layout.ISIC, _ISIC_COLUMNS
    elif "image_id" in table.header:
        layout, known = Layout.HAM10000, _HAM_COLUMNS
    else:
        raise TableProblem(
            f"The columns of {'the table' if metadata else 'metadata.csv'} are not known "
            f"({', '.join(table.header)[:200]}); name them with --columns image=COLUMN,age=COLUMN,…"
        )
    return replace(archive, layout=layout, columns=_positions(table, known, strict=False))


def _find_table(root: Path, *, named: bool) -> Path | None:
    for name in (*_HAM_TABLES, _ISIC_TABLE):
        if (root / name).is_file():
            return root / name
    if not named:
        return None
    tables = [entry for entry in root.iterdir() if entry.suffix.lower() == ".csv" and entry.is_file()]
    if len(tables) != 1:
        raise TableProblem(
            f"There are {len(tables)} CSV files in the archive's root; say which one with --metadata FILE."
        )
    return tables[0]


def _positions(table: Table, wanted: Mapping[str, tuple[str, ...]], *, strict: bool) -> dict[str, tuple[int, ...]]:
    exact = {name: number for number, name in enumerate(table.header) if name}
    folded = {name.casefold(): number for name, number in exact.items()}
    found: dict[str, tuple[int, ...]] = {}
    for role, names in wanted.items():
        numbers = (exact.get(name, folded.get(name.casefold())) for name in names)
        there = tuple(number for number in numbers if number is not None)
        if strict and not there:
            raise TableProblem(f"The table has no column {names[0]}; it has: {', '.join(exact)[:300]}.")
        if there:
            found[role] = there
    return found


class Walk:
    """Streams the files of an archive that are items, and counts what is passed over.

    Args:
        archive: What to walk.
    """

    def __init__(self, archive: Archive) -> None:
        if isinstance(archive.root, DicomWebPlace):
            raise TypeError("A PACS is listed, see producer.pacs, and not walked.")
        self._root = archive.root
        self._table = _name_table(archive)
        #: Files that are no items, by ending.
        self.ignored: Counter[str] = Counter()
        #: Folders that could not be listed.
        self.unreadable_folders = 0

    def __iter__(self) -> Iterator[FoundFile]:
        if isinstance(self._root, ObjectFolder):
            for relative, found in objects.list_objects(self._root):
                if self._may_be_item(relative):
                    yield from self._as_item(_look_at_object(relative, found))
            return
        pending = [""]
        while pending:
            yield from self._list_folder(self._root, pending.pop(), pending.append)

    def _list_folder(self, root: Path, folder: str, found_folder: Callable[[str], None]) -> Iterator[FoundFile]:
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    relative = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        found_folder(relative)
                    elif (file := self._look_at(entry, relative)) is not None:
                        yield from self._as_item(file)
        except OSError as error:
            if not folder or error.errno in _AWAY:
                raise ServiceProblem("The archive does not answer; check that it is mounted, and run again.") from error
            if error.errno != errno.ENOENT:
                self.unreadable_folders += 1

    def _may_be_item(self, relative: str) -> bool:
        name = relative.rpartition("/")[2]
        if relative != self._table and (split_suffix(name)[1] is not None or may_be_dicom(name)):
            return True
        self._ignore(relative)
        return False

    def _ignore(self, relative: str) -> None:
        if relative != self._table:
            ending = Path(relative).suffix.lower().lstrip(".")
            self.ignored[ending.encode("utf-8", "replace").decode()[:20] or "(none)"] += 1

    def _as_item(self, file: FoundFile) -> Iterator[FoundFile]:
        """Give a file that is an item, with its headers where it is a DICOM object, and count one that is none."""
        if not may_be_dicom(file.path.rpartition("/")[2]):
            yield file
            return
        header = None if file.rejected else self._read_header(file.path)
        if header is not None and header.rejected in NO_ITEMS:
            self.ignored[header.rejected] += 1
        elif header is not None:
            yield replace(file, header=header, rejected=header.rejected)
        elif split_suffix(file.path)[1] is not None:
            yield file
        else:
            self._ignore(file.path)

    def _read_header(self, relative: str) -> DicomRecord | None:
        try:
            with open_below(self._root, relative) as file:
                return read_file(file)
        except OSError as error:
            if isinstance(self._root, ObjectFolder) and error.errno == errno.EIO:
                raise ServiceProblem(objects.AWAY) from error
            if error.errno in _AWAY - {errno.ENXIO, errno.ENODEV}:
                raise ServiceProblem("The archive does not answer; check that it is mounted, and run again.") from error
            # The worker meets the same, and says what it is.
            return None

    def _look_at(self, entry: os.DirEntry[str], relative: str) -> FoundFile | None:
        if not self._may_be_item(relative):
            return None
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            # It went away while the folder was being listed: it is not in the archive.
            return None
        return FoundFile(
            path=relative, size=status.st_size, mtime_ns=status.st_mtime_ns, rejected=_refusal(relative, status)
        )


def _name_table(archive: Archive) -> str | None:
    # Below the root, so that it is not counted as passed over.
    if archive.table is None or not isinstance(archive.root, Path):
        return archive.table_key
    path = archive.table.path
    return path.relative_to(archive.root).as_posix() if path.is_relative_to(archive.root) else None


def _look_at_object(relative: str, found: StoredObject) -> FoundFile:
    return FoundFile(
        path=relative,
        size=found.size,
        mtime_ns=objects.count_nanoseconds(found.modified),
        rejected=objects.refuse_object(relative),
    )


def _refusal(relative: str, status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "symlink"
    if not stat.S_ISREG(status.st_mode):
        return "not_a_regular_file"
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError:
        return "unreadable_name"
    return None
