"""HTTP to a DICOMweb server: bounded, retried where that helps, and every failure told as the error of a file system.

`dicomweb-client` takes a whole answer into memory, logs what was asked for and knows no Retry-After; so the three kinds
of GET that a pull needs are asked here, and nothing else is.
"""

import errno
import os
import ssl
import threading
import time
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from db.errors import SettingsError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

#: Seconds; a server that takes no connection for so long is away.
_CONNECT_SECONDS: Final = 5.0
#: Seconds that the question whether the server answers at all may take.
_PROBE_SECONDS: Final = 10.0
#: Times a request is sent; one that hung counts twice, as it has taken a thread for long.
_TRIES: Final = 3
#: A study that has hung or failed is given this part of the time.
_BRISK: Final = 4
#: No request is given less time.
_LEAST_SECONDS: Final = 0.1
_PIECE_BYTES: Final = 1 << 18
#: Of the answer to a probe no more is read.
_PROBE_BYTES: Final = 1 << 16

_LAST_SUCCESS, _FIRST_FAULT = 299, 500
_NOT_THERE: Final = frozenset({404, 410})
#: Refusals that pass: request timeout, too early, too many requests.
_PASSING: Final = frozenset({408, 425, 429})

#: The ports that an address need not name.
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

JSON: Final = "application/dicom+json, application/json;q=0.9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How DICOMweb servers are spoken to.

    Attributes:
        server: The one server, as `http(s)://host:port`, that gets the credentials, and that is asked without TLS where
            this says http.
        user: With `password`, for Basic authentication (RFC 7617).
        password: Its password.
        token: For Bearer authentication (RFC 6750).
        authorities: File with the certificates that are believed; None are the system's.
        silence: Seconds without a byte after which a request has failed.
        patience: Seconds that one read may take with all its tries.
        connections: Connections that one process keeps to a server, and requests that are under way at most.
        longest: Bytes of an instance that are read at most where a caller names no limit.
    """

    server: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    authorities: Path | None = None
    silence: float = 30.0
    patience: float = 90.0
    connections: int = 4
    longest: int = 50 * 1024 * 1024

    def authorization(self) -> str | None:
        """Write the header that lets us in, if there is one."""
        if self.token is not None:
            return f"Bearer {self.token.get_secret_value()}"
        if self.user is None or self.password is None:
            return None
        pair = f"{self.user}:{self.password.get_secret_value()}"
        return f"Basic {b64encode(pair.encode()).decode('ascii')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server said; an answer that says no is an error instead."""

    content_type: str
    #: Cut off where `complete` is not so.
    body: bytes
    complete: bool


class _Failed(Exception):  # noqa: N818 - says what is the case
    """A request that may do better when it is sent again."""

    def __init__(self, *, hung: bool = False, wait: float | None = None) -> None:
        super().__init__()
        self.hung, self.wait = hung, wait


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServer:
    """One DICOMweb server. Any thread may call it, and threads wait where all its connections are busy.

    Errors are told without the address, what was asked for, or what the server said, which may quote both.

    Attributes:
        host: Its name or number.
        port: Its port; None is the default.
        path: What stands before `/studies`, with a slash at its beginning, or empty.
        access: How.
    """

    host: str
    port: int | None
    path: str
    access: Access

    @property
    def is_ours(self) -> bool:
        """Whether this is the server that the settings are about, which alone gets credentials."""
        ours = urlsplit(self.access.server or "")
        default = DEFAULT_PORTS.get(ours.scheme)
        return ours.hostname == self.host and (ours.port or default) == (self.port or default)

    @property
    def is_plain(self) -> bool:
        """Whether it is asked without TLS."""
        return self.is_ours and urlsplit(self.access.server or "").scheme == "http"

    def get(self, relative: str, query: str, accept: str, limit: int, *, brisk: bool = False) -> Answer:
        """Ask for something, several times where that may help.

        Args:
            relative: Path below the service's root.
            query: Query string without its question mark.
            accept: Media types.
            limit: Bytes of the body at most; what is longer is cut off there.
            brisk: Ask once, and give it less time: what is asked for has hung or failed before.

        Returns:
            The answer.

        Raises:
            OSError: ENOENT where it is not there, EACCES where it is refused; EREMOTEIO where it alone does not come
                though the server answers; EIO where the server does not answer.
        """
        # Late: settings are read by commands that need neither database nor server.
        from worker.patience import pause

        until = time.monotonic() + self.access.patience
        silence = self.access.silence / (_BRISK if brisk else 1)
        spent = failures = 0
        while True:
            try:
                return self._ask(relative, query, accept, limit, silence, until)
            except _Failed as failed:
                # After each failure: what is lost while a server starts again is no fault of one instance.
                if not self.is_up():
                    raise error_of(errno.EIO) from None
                failures += 1
                spent += 2 if failed.hung else 1
                delay = pause(failures) if failed.wait is None else failed.wait
                if brisk or spent >= _TRIES or time.monotonic() + delay > until:
                    raise error_of(errno.EREMOTEIO) from None
                time.sleep(delay)

    def is_up(self) -> bool:
        """Say whether the server answers, lets us in, and has anything to list."""
        until = time.monotonic() + _PROBE_SECONDS
        try:
            found = self._ask("studies", "limit=1", JSON, _PROBE_BYTES, _PROBE_SECONDS, until)
        except (_Failed, OSError):
            return False
        return found.body.lstrip()[:1] == b"[" and b"{" in found.body

    def _ask(self, relative: str, query: str, accept: str, limit: int, silence: float, until: float) -> Answer:
        """Send one request."""
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError
        from urllib3.exceptions import TimeoutError as Hung

        left = max(min(silence, until - time.monotonic()), _LEAST_SECONDS)
        # Nothing is compressed, which could be any size.
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        written = self.access.authorization() if self.is_ours else None
        if written is not None:
            headers["Authorization"] = written
        try:
            response = self.open_pool().urlopen(
                "GET",
                f"{self.path}/{relative}?{query}" if query else f"{self.path}/{relative}",
                headers=headers,
                retries=False,
                # It could lead to any host.
                redirect=False,
                timeout=Timeout(connect=min(_CONNECT_SECONDS, left), read=left),
                preload_content=False,
                decode_content=False,
            )
            try:
                _check_status(response)
                return _read(response, limit, until)
            finally:
                # Where the answer was read to its end, the connection is in the pool by now, and stays open. Any other
                # one is closed, and its place is given back.
                response.close()
                response.release_conn()
        except Hung:
            raise _Failed(hung=True) from None
        except (HTTPError, ssl.SSLError, ConnectionError):
            raise _Failed from None

    def open_pool(self) -> "HTTPConnectionPool":
        """Get this process's connections to the server ready; nothing is asked yet.

        Returns:
            The pool, the same one for all threads.

        Raises:
            SettingsError: If the certificates that are to be believed cannot be read.
        """
        with _OPENING:
            return _open_pool(os.getpid(), self.host, self.port, self.access, plain=self.is_plain)


_OPENING: Final = threading.Lock()


@cache
def _open_pool(_process: int, host: str, port: int | None, access: Access, *, plain: bool) -> "HTTPConnectionPool":
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    if plain:
        return HTTPConnectionPool(host, port, maxsize=access.connections, block=True)
    try:
        trusted = ssl.create_default_context(cafile=access.authorities)
    except OSError:
        raise SettingsError("WORKER_DICOMWEB_CA is no file of certificates that can be read; correct it.") from None
    return HTTPSConnectionPool(host, port, maxsize=access.connections, block=True, ssl_context=trusted)


def _check_status(response: "BaseHTTPResponse") -> None:
    status = response.status
    if status in _NOT_THERE:
        raise error_of(errno.ENOENT)
    if status in _PASSING or status >= _FIRST_FAULT:
        raise _Failed(wait=_read_wait(response.headers.get("Retry-After")))
    if status > _LAST_SUCCESS or response.headers.get("Content-Encoding", "identity") != "identity":
        raise error_of(errno.EACCES)


def _read_wait(text: str | None) -> float | None:
    """Read Retry-After: seconds or a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _read(response: "BaseHTTPResponse", limit: int, until: float) -> Answer:
    pieces, left = [], limit
    # Never more, whatever the server sends, and never longer, however slowly it does.
    while piece := response.read1(min(left, _PIECE_BYTES)):
        pieces.append(piece)
        left -= len(piece)
        if not left:
            break
        if time.monotonic() > until:
            raise _Failed(hung=True)
    return Answer(content_type=response.headers.get("Content-Type", ""), body=b"".join(pieces), complete=bool(left))


def error_of(number: int) -> OSError:
    """Make the error that a file system would have, without a name."""
    return OSError(number, os.strerror(number))
