"""Object storage: a place `s3://bucket/prefix` that is read and written as a folder is, without links or `..`."""

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from db.errors import SettingsError
from worker.s3 import S3, StoredObject, insist_on_extra

SCHEME: Final = "s3://"

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, and what older buckets were called.
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
#: Bytes of UTF-8, https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html.
_LONGEST_KEY: Final = 1024
#: Bytes that are asked for at once where a caller reads less.
_BLOCK_BYTES: Final = 1 << 16


def is_address(text: str) -> bool:
    """Say whether a text names a place on object storage rather than a folder."""
    return text[: len(SCHEME)].lower() == SCHEME


def read_address(address: str) -> tuple[str, str]:
    """Take an address apart.

    Args:
        address: `s3://bucket` or `s3://bucket/prefix`.

    Returns:
        Bucket and prefix, which has no slash at its ends.

    Raises:
        SettingsError: If it is no such address, or holds more than that: credentials have no place in it, as the
            ledger keeps it. The text does not quote it.
    """
    bucket, _, prefix = address[len(SCHEME) :].partition("/")
    if "@" in address or ":" in bucket or "?" in address or "#" in address:
        raise SettingsError(
            "An s3:// address is a bucket and a prefix and nothing else: credentials go into the environment or into "
            "the file that AWS_SHARED_CREDENTIALS_FILE names, the server into WORKER_S3_ENDPOINT."
        )
    prefix = prefix.rstrip("/")
    if not is_address(address) or not _BUCKET.fullmatch(bucket) or (prefix and not is_plain(prefix)):
        raise SettingsError("An s3:// address is written s3://bucket/prefix, without empty, `.` or `..` parts.")
    return bucket, prefix


def is_plain(relative: str) -> bool:
    """Say whether a path is one that no file system would read differently: no empty, `.` or `..` part, no NUL."""
    return not {"", ".", ".."} & set(relative.split("/")) and "\0" not in relative


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFolder:
    """A place on object storage. Errors are those of a file system and name no bucket and no key.

    Attributes:
        bucket: The bucket.
        prefix: What stands before every path, without slashes at its ends; empty for a whole bucket.
        server: Who has it.
    """

    bucket: str
    prefix: str
    server: S3

    @classmethod
    def at(cls, address: str, endpoint: str | None) -> Self:
        """Name a place; nothing is asked yet.

        Args:
            address: `s3://bucket/prefix`.
            endpoint: Address of the server; None is Amazon's.

        Returns:
            The place.

        Raises:
            SettingsError: If the address is not sound, or the extra `s3` is not installed.
        """
        bucket, prefix = read_address(address)
        insist_on_extra()
        return cls(bucket=bucket, prefix=prefix, server=S3(endpoint=endpoint))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def name(self) -> str:
        """Its last part, as a folder's name is."""
        return self.prefix.rpartition("/")[2] or self.bucket

    def read(self, relative: str, limit: int) -> bytes:
        """Read an object.

        Args:
            relative: Path below the place, with forward slashes.
            limit: Bytes at most; what is longer is cut off there.

        Returns:
            Its bytes.

        Raises:
            OSError: ENOENT where it is not there, EACCES where it is refused, EIO where the server does not answer.
        """
        return self.server.get(self.bucket, self._key(relative), 0, limit)[0]

    @contextmanager
    def open(self, relative: str) -> Iterator["io.BufferedReader[Any]"]:
        """Open an object to read and seek in; it is fetched piece by piece.

        Args:
            relative: Path below the place.

        Yields:
            The file.

        Raises:
            OSError: As `read`, there and while it is read.
        """
        with io.BufferedReader(_ObjectFile(self, self._key(relative)), _BLOCK_BYTES) as file:
            file.peek(1)
            yield file

    def write(self, relative: str, data: bytes) -> None:
        """Write an object, whole or not at all.

        Raises:
            OSError: As `read`.
        """
        self.server.put(self.bucket, self._key(relative), data)

    def delete(self, relative: str) -> None:
        """Delete an object, if it is there.

        Raises:
            OSError: As `read`.
        """
        self.server.delete(self.bucket, self._key(relative))

    def list(self, start: str = "") -> Iterator[tuple[str, StoredObject]]:
        """Stream every object, with its path below the place, whatever that looks like.

        Args:
            start: Only those whose paths begin so.

        Raises:
            OSError: As `read`; ENOENT says that the bucket is not there.
        """
        before = self._below("")
        for found in self.server.list(self.bucket, self._below(start)):
            yield found.key[len(before) :], found

    def answers(self) -> bool:
        """Say whether the server answers, lets us in, and has anything here."""
        try:
            return any(True for _ in self.server.list(self.bucket, self._below(""), most=1))
        except OSError:
            return False

    def _below(self, relative: str) -> str:
        return f"{self.prefix}/{relative}" if self.prefix else relative

    def _key(self, relative: str) -> str:
        key = self._below(relative)
        try:
            length = len(key.encode())
        except UnicodeEncodeError:
            length = 0
        if not length or not is_plain(relative):
            raise OSError(errno.EINVAL, "not a path below the root")
        if length > _LONGEST_KEY:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return key


class _ObjectFile(io.RawIOBase):
    """An object as a file: each read is a request, and the first one tells the size."""

    def __init__(self, folder: ObjectFolder, key: str) -> None:
        self._folder, self._key = folder, key
        self._at = 0
        self._size: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("from the end")
        self._at = offset + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not len(buffer) or (self._size is not None and self._at >= self._size):
            return 0
        folder = self._folder
        data, self._size = folder.server.get(folder.bucket, self._key, self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
