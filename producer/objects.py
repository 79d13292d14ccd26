"""Archives on object storage: walked page by page, with their table fetched into a file that nobody else can open."""

import errno
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from producer.errors import ArchiveProblem, ServiceProblem, TableProblem
from worker.dicomweb import DicomWebPlace
from worker.objects import ObjectFolder, is_plain
from worker.s3 import StoredObject

AWAY: Final = (
    "The object storage does not answer, or refuses the credentials; check WORKER_S3_ENDPOINT and that "
    "AWS_ACCESS_KEY_ID or AWS_SHARED_CREDENTIALS_FILE is set, and run again."
)
PACS_AWAY: Final = (
    "The PACS does not answer, or refuses us; check the address, WORKER_DICOMWEB_SERVER, the credentials and "
    "WORKER_DICOMWEB_CA, and run again."
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PIECE_BYTES: Final = 1 << 20


def say_away(root: ObjectFolder | DicomWebPlace) -> ServiceProblem:
    """Say that a root which is no folder does not answer.

    Args:
        root: The root.

    Returns:
        What to raise.
    """
    return ServiceProblem(AWAY if isinstance(root, ObjectFolder) else PACS_AWAY)


def insist_on_objects(root: ObjectFolder) -> None:
    """Refuse a root that does not answer or has nothing in it.

    Args:
        root: The root.

    Raises:
        ArchiveProblem: If there is no such bucket, or nothing under the prefix.
        ServiceProblem: If the server does not answer, or refuses the credentials.
    """
    try:
        if any(True for _ in root.list()):
            return
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise ServiceProblem(AWAY) from error
    raise ArchiveProblem("There is nothing under this s3:// address; check bucket and prefix.")


def list_objects(root: ObjectFolder) -> Iterator[tuple[str, StoredObject]]:
    """Stream an archive's objects, those that stand for folders left out.

    Args:
        root: The root.

    Yields:
        Path below the root, and the object.

    Raises:
        ServiceProblem: If the server does not answer.
    """
    try:
        for relative, found in root.list():
            if relative and not (relative.endswith("/") and not found.size):
                yield relative, found
    except OSError as error:
        raise ServiceProblem(AWAY) from error


def refuse_object(relative: str) -> str | None:
    """Say why an object will not be opened.

    Args:
        relative: Its path below the root.

    Returns:
        A reason code, or None.
    """
    return None if is_plain(relative) else "unsafe_path"


def count_nanoseconds(modified: datetime) -> int:
    """Count the time of an object's last change as a file system does, since 1970."""
    since = modified - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def find_table(root: ObjectFolder, names: Sequence[str]) -> str | None:
    """Look for a table in an archive's root.

    Args:
        root: The root.
        names: What it may be called, the likeliest first.

    Returns:
        The first name that is there.

    Raises:
        ServiceProblem: If the server does not answer.
    """
    return next((name for name in names if _is_there(root, name)), None)


def _is_there(root: ObjectFolder, name: str) -> bool:
    try:
        root.read(name, 1)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ServiceProblem(AWAY) from error
    return True


class TableCopy:
    """A table on this machine's disk that nobody else can open: it has no name, and is gone with this object.

    Under a name, patients' data would outlive a producer that is killed.
    """

    def __init__(self) -> None:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when this object goes
        #: For this process alone.
        self.path = Path(f"/proc/self/fd/{file.fileno()}")
        weakref.finalize(self, file.close)

    def fill(self, table: IO[bytes]) -> None:
        """Write what a file holds.

        Args:
            table: The file.

        Raises:
            OSError: If it cannot be read, or the disk is full.
        """
        with self.path.open("wb") as copy:
            shutil.copyfileobj(table, copy, _PIECE_BYTES)


def fetch_table(root: ObjectFolder, name: str) -> TableCopy:
    """Copy a table to this machine.

    Args:
        root: Where it lies.
        name: Its path below.

    Returns:
        The copy.

    Raises:
        TableProblem: If it is not there.
        ServiceProblem: If the server does not answer.
    """
    copy = TableCopy()
    try:
        with root.open(name) as table:
            copy.fill(table)
    except FileNotFoundError:
        raise TableProblem("The metadata table is not there; check the address given with --metadata.") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise ServiceProblem(AWAY) from error
    return copy
