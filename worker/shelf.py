"""The shelf: small files of the artifact store that many hosts write and read, in a folder or on object storage."""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.errors import ShelfUnavailable
from worker.objects import ObjectFolder

#: A picture is a hundredth of that.
_MOST_BYTES = 16 * 1024 * 1024
_WRITING = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Shelf(Protocol):
    """Files by their paths relative to the artifact store, with forward slashes. Any thread may call it."""

    def read(self, relative: str) -> bytes | None:
        """Read a file.

        Args:
            relative: Which.

        Returns:
            Its bytes, or None where it is not there or cannot be read.
        """

    def has(self, relative: str) -> bool:
        """Say whether a file is there and can be read.

        Args:
            relative: Which.

        Returns:
            Whether it is.
        """

    def write(self, relative: str, data: bytes) -> None:
        """Write a file, whole or not at all; readable by this user alone.

        Args:
            relative: Which.
            data: Its bytes.

        Raises:
            OSError: If the store does not take it.
        """

    def delete(self, relative: str) -> None:
        """Delete a file; one that is not there is no error.

        Args:
            relative: Which.

        Raises:
            OSError: If the store does not do it.
        """

    def names(self, folder: str) -> Iterator[tuple[str, float]]:
        """List the files of a folder, those that are only being written among them, with a dot before their names.

        Args:
            folder: Relative to the store.

        Yields:
            Name, and when it was last written, seconds since 1970; nothing where there is no such folder.

        Raises:
            ShelfUnavailable: If object storage does not answer.
        """


@dataclass(frozen=True, slots=True)
class FolderShelf:
    """A shelf in a folder.

    Attributes:
        folder: The artifact store.
    """

    folder: Path

    def read(self, relative: str) -> bytes | None:
        """Read a file, see `Shelf.read`."""
        try:
            with (self.folder / relative).open("rb") as file:
                return file.read(_MOST_BYTES)
        except OSError:
            return None

    def has(self, relative: str) -> bool:
        """Say whether a file is there, see `Shelf.has`."""
        return (self.folder / relative).is_file()

    def write(self, relative: str, data: bytes) -> None:
        """Write a file, see `Shelf.write`."""
        # As text: a path of objects costs as much as writing the file, and a worker writes one for each flagged image.
        folder, _, name = f"{self.folder}/{relative}".rpartition("/")
        # Two workers may write one file at once. Not synced: a picture can be drawn again.
        draft = f"{folder}/.{name}.{os.getpid()}"
        try:
            file = os.open(draft, _WRITING, 0o600)
        except FileNotFoundError:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(draft, _WRITING, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(data)
        os.replace(draft, f"{folder}/{name}")  # noqa: PTH105 - see above

    def delete(self, relative: str) -> None:
        """Delete a file, see `Shelf.delete`."""
        path = (self.folder / relative).resolve()
        # Nobody's word is taken for a path beyond the store.
        if path.is_relative_to(self.folder.resolve()):
            path.unlink(missing_ok=True)

    def names(self, folder: str) -> Iterator[tuple[str, float]]:
        """List the files of a folder, see `Shelf.names`."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    told = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(told.st_mode):
                        yield entry.name, told.st_mtime


@dataclass(frozen=True, slots=True)
class ObjectShelf:
    """A shelf on object storage.

    Attributes:
        objects: The artifact store.
    """

    objects: ObjectFolder

    def read(self, relative: str) -> bytes | None:
        """Read a file, see `Shelf.read`."""
        return self._read(relative, _MOST_BYTES)

    def has(self, relative: str) -> bool:
        """Say whether a file is there, see `Shelf.has`."""
        return self._read(relative, 1) is not None

    def _read(self, relative: str, limit: int) -> bytes | None:
        try:
            return self.objects.read(relative, limit)
        except OSError:
            return None

    def write(self, relative: str, data: bytes) -> None:
        """Write a file, see `Shelf.write`."""
        self.objects.write(relative, data)

    def delete(self, relative: str) -> None:
        """Delete a file, see `Shelf.delete`."""
        self.objects.delete(relative)

    def names(self, folder: str) -> Iterator[tuple[str, float]]:
        """List the files of a folder, see `Shelf.names`."""
        try:
            for relative, found in self.objects.list(f"{folder}/"):
                yield relative.removeprefix(f"{folder}/"), found.modified.timestamp()
        except OSError as error:
            raise ShelfUnavailable(f"The artifact store does not answer ({type(error).__name__}).") from None


def shelf_of(folder: Path, objects: ObjectFolder | None) -> Shelf:
    """Find the shelf of an artifact store.

    Args:
        folder: The store's folder.
        objects: The store on object storage, where it is there.

    Returns:
        The shelf.
    """
    return FolderShelf(folder) if objects is None else ObjectShelf(objects)
