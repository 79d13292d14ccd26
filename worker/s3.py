"""S3: the few calls that object storage needs, with every failure told as the error of a file system."""

import atexit
import errno
import os
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from typing import Any, Final, NoReturn

from db.errors import SettingsError

#: Seconds; a server that says nothing for so long is away, and well before a worker counts as stalled.
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 30
#: Times a call is tried, by botocore, with its own pauses; the ledger tries again after that.
_ATTEMPTS: Final = 2
#: As many as a worker may have threads that read.
_CONNECTIONS: Final = 64
_PIECE_BYTES: Final = 1 << 20

_NOT_FOUND: Final = 404
_RANGE_BEYOND_END: Final = 416
_FIRST_REFUSAL, _FIRST_FAULT = 400, 500
#: Refusals that pass: request timeout, conflict, too early, too many requests.
_PASSING: Final = frozenset({408, 409, 425, 429})
_PASSING_CODES: Final = frozenset({"RequestTimeout", "SlowDown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object as a listing has it."""

    key: str
    #: Bytes.
    size: int
    modified: datetime


def insist_on_extra() -> None:
    """Refuse to go on without the libraries for object storage.

    Raises:
        SettingsError: If they are not installed.
    """
    if find_spec("s3fs") is None:
        raise SettingsError("An s3:// address needs the extra s3; install it: pip install 'lesion-screen[s3]'.")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """One server, spoken to through s3fs; its credentials are where boto looks for them. Any thread may call it.

    Bucket and key are handed over as they are: s3fs's own methods read version numbers and patterns out of a path.
    Errors are told without bucket, key or what the server said, which may quote both.

    Attributes:
        endpoint: Address of the server; None is Amazon's.
    """

    endpoint: str | None

    def get(self, bucket: str, key: str, start: int, count: int) -> tuple[bytes, int]:
        """Read a part of an object.

        Args:
            bucket: Its bucket.
            key: Its key.
            start: First byte.
            count: Bytes at most; at least 1.

        Returns:
            The bytes, none from the end on, and the object's size.

        Raises:
            OSError: ENOENT where it is not there, EACCES where the server refuses it, EIO where it does not answer.
        """
        wanted = f"bytes={start}-{start + count - 1}"
        answer = self._call("get_object", Bucket=bucket, Key=key, Range=wanted)
        if answer is None:
            return b"", start
        size = _whole_size(answer, start)
        data = self._wait(_read_body(answer["Body"], count))
        if len(data) != max(0, min(count, size - start)):
            raise _error(errno.EIO)
        return data, size

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object, whole or not at all: so S3 has it.

        Raises:
            OSError: As `get`.
        """
        self._call("put_object", Bucket=bucket, Key=key, Body=data)

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object; one that is not there is no error.

        Raises:
            OSError: As `get`.
        """
        self._call("delete_object", Bucket=bucket, Key=key)

    def list(self, bucket: str, prefix: str, *, most: int = 1000) -> Iterator[StoredObject]:
        """Stream what lies under a prefix, page by page, so that memory stays flat.

        Args:
            bucket: The bucket.
            prefix: What keys begin with.
            most: Objects of one page.

        Yields:
            Every object.

        Raises:
            OSError: As `get`; ENOENT says that the bucket is not there.
        """
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=most, **token) or {}
            for found in page.get("Contents", ()):
                yield StoredObject(key=found["Key"], size=found["Size"], modified=found["LastModified"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _filesystem(self) -> Any:
        import fsspec

        # One for all callers of a process and none for its parent: fsspec sees to both.
        filesystem = fsspec.filesystem(
            "s3",
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _READ_SECONDS,
                "max_pool_connections": _CONNECTIONS,
                "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
                # Servers other than Amazon's do not know the newest checksums; what counts has a digest of ours.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        filesystem.retries = 1
        _stop_at_exit()
        return filesystem

    def _call(self, method: str, **arguments: Any) -> Any:
        try:
            return self._filesystem().call_s3(method, **arguments)
        except _failures() as error:
            if _status(error) == _RANGE_BEYOND_END:
                return None
            _refuse(error)

    def _wait(self, reading: Coroutine[Any, Any, bytes]) -> bytes:
        from fsspec.asyn import sync

        try:
            data: bytes = sync(self._filesystem().loop, lambda: reading)
        except _failures() as error:
            _refuse(error)
        return data


@cache
def _stop_at_exit() -> None:
    atexit.register(_stop_loop)


def _stop_loop() -> None:
    # fsspec's thread is a daemon, and one that runs while the interpreter ends can hold it up for ever.
    from fsspec import asyn

    loop, thread = asyn.loop[0], asyn.iothread[0]
    if loop is not None and thread is not None and thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_READ_SECONDS)


def _failures() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    return (OSError, HttpError, BotoCoreError, ClientError, HTTPClientError)


async def _read_body(body: Any, count: int) -> bytes:
    pieces = []
    async with body:
        # Never more, whatever the server sends.
        while count > 0 and (piece := await body.read(min(count, _PIECE_BYTES))):
            pieces.append(piece)
            count -= len(piece)
    return b"".join(pieces)


def _whole_size(answer: Any, start: int) -> int:
    _, _, size = str(answer.get("ContentRange") or "").rpartition("/")
    if size.isdecimal():
        return int(size)
    if start:
        # A server that begins from the front, whatever it was asked for.
        raise _error(errno.EIO)
    return int(answer["ContentLength"])


def _answer(error: Exception) -> dict[str, Any]:
    # s3fs translates what botocore raised, and keeps it as the cause.
    answers = (getattr(one, "response", None) for one in (error, error.__cause__))
    return next((one for one in answers if isinstance(one, dict)), {})


def _status(error: Exception) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _refuse(error: Exception) -> NoReturn:
    status, code = _status(error), _answer(error).get("Error", {}).get("Code")
    if status == _NOT_FOUND:
        raise _error(errno.ENOENT) from None
    refused = _FIRST_REFUSAL <= status < _FIRST_FAULT and status not in _PASSING and code not in _PASSING_CODES
    raise _error(errno.EACCES if refused else errno.EIO) from None


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
