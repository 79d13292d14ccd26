"""Reads untrusted files of an archive without following a link out of it; knows nothing of what is in them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from model.errors import ArchiveUnavailable, RejectedImage, RejectReason

#: Errors of the file system under the archive rather than of one file.
_AWAY: Final = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN})
#: Errors of this process or host: they pass.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})


class ObjectRoot(Protocol):
    """The root of an archive that is no folder; `worker.objects.ObjectFolder` is one."""

    def read(self, relative: str, limit: int) -> bytes:
        """Read at most so many bytes of an object; OSError with the number a file system would have."""

    def answers(self) -> bool:
        """Say whether the root answers and has anything in it."""


def read_image_bytes(root: Path | ObjectRoot, relative: str, *, max_bytes: int) -> bytes:
    """Read one file of an archive without following a link out of it.

    Every folder on the way is opened without following links, so that a path swapped after submit leads nowhere.

    Args:
        root: The archive's root, a folder or a place on object storage.
        relative: Path below it, with forward slashes.
        max_bytes: Larger files are refused unread.

    Returns:
        The file's bytes.

    Raises:
        RejectedImage: The path is unsafe, or the file missing, not regular, empty, too large or unreadable.
        ArchiveUnavailable: The root itself does not answer.
    """
    parts = _safe_parts(relative)
    if not isinstance(root, Path):
        return _read_object(root, relative, parts, max_bytes)
    folder = _open_root(root)
    try:
        for part in parts[:-1]:
            below = _open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, folder)
            os.close(folder)
            folder = below
        # Non-blocking: a FIFO named .jpg must not hold the worker.
        file = _open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, folder)
    except RejectedImage as rejected:
        if rejected.reason is RejectReason.MISSING_IMAGE:
            _check_root(root)
        raise
    finally:
        os.close(folder)
    try:
        return _read_regular(file, max_bytes)
    finally:
        os.close(file)


def _read_object(root: ObjectRoot, relative: str, parts: tuple[str, ...], max_bytes: int) -> bytes:
    if relative != "/".join(parts):
        # `a//b` and `./b` are other objects than `a/b` and `b`, where a folder has one file for both.
        raise RejectedImage(RejectReason.UNSAFE_PATH)
    try:
        data = root.read(relative, max_bytes + 1)
    except OSError as error:
        # What is missing or refused is so for the whole root where a bucket is gone or a password has changed.
        if error.errno in {errno.ENOENT, errno.EACCES} and not root.answers():
            raise ArchiveUnavailable("The archive's root is empty or does not answer.") from None
        raise _translate(error) from None
    return _check_size(data, max_bytes)


def _safe_parts(relative: str) -> tuple[str, ...]:
    try:
        # A lone surrogate names no file on any file system.
        os.fsencode(relative)
    except UnicodeEncodeError:
        raise RejectedImage(RejectReason.UNSAFE_PATH) from None
    path = PurePosixPath(relative)
    if not relative or "\0" in relative or path.is_absolute() or not path.parts or ".." in path.parts:
        raise RejectedImage(RejectReason.UNSAFE_PATH)
    return path.parts


def _open_root(root: Path) -> int:
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveUnavailable(
            f"The archive's root does not answer ({errno.errorcode.get(error.errno or 0)})."
        ) from None


def _check_root(root: Path) -> None:
    # "Missing" is said only while the root answers and is not an empty mount point.
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass
    raise ArchiveUnavailable("The archive's root is empty or does not answer.")


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise _translate(error) from None


def _translate(error: OSError) -> RejectedImage | ArchiveUnavailable:
    if error.errno in _AWAY or error.errno in _EXHAUSTED:
        return ArchiveUnavailable(f"The archive does not answer ({errno.errorcode.get(error.errno or 0)}).")
    reasons = {
        errno.ENOENT: RejectReason.MISSING_IMAGE,
        errno.ELOOP: RejectReason.SYMLINK,
        # A component that should be a folder is a link or a file.
        errno.ENOTDIR: RejectReason.UNSAFE_PATH,
        errno.EISDIR: RejectReason.NOT_A_REGULAR_FILE,
        # A socket, or a device that nobody drives: waiting for it would hold the chunk for ever.
        errno.ENXIO: RejectReason.NOT_A_REGULAR_FILE,
        errno.ENODEV: RejectReason.NOT_A_REGULAR_FILE,
        errno.ENAMETOOLONG: RejectReason.UNSAFE_PATH,
        errno.EREMOTEIO: RejectReason.NOT_DELIVERED,
    }
    return RejectedImage(reasons.get(error.errno or 0, RejectReason.UNREADABLE))


def _read_regular(file: int, max_bytes: int) -> bytes:
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise RejectedImage(RejectReason.NOT_A_REGULAR_FILE)
        if found.st_size > max_bytes:
            raise RejectedImage(RejectReason.TOO_LARGE_FILE)
        data = _read_at_most(file, max_bytes + 1)
    except OSError as error:
        raise _translate(error) from None
    return _check_size(data, max_bytes)


def _check_size(data: bytes, max_bytes: int) -> bytes:
    if not data:
        raise RejectedImage(RejectReason.EMPTY_FILE)
    if len(data) > max_bytes:
        raise RejectedImage(RejectReason.TOO_LARGE_FILE)
    return data


def _read_at_most(file: int, limit: int) -> bytes:
    pieces = []
    while limit > 0 and (piece := os.read(file, min(limit, 1 << 20))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)
