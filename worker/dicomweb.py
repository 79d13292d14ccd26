"""A PACS: a place `dicomweb://host/path?filters` whose instances are read as the files of a folder are."""

import errno
import io
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from db.errors import SettingsError
from worker.multipart import OVERHEAD_BYTES, BrokenAnswer, take_object
from worker.wado import DEFAULT_PORTS, JSON, Access, WebServer, error_of

SCHEME: Final = "dicomweb://"

#: PS3.5, 9.1. Components that begin with 0 are wrong, and there are such.
_UID: Final = r"[0-9]{1,62}(?:\.[0-9]{1,62}){0,31}"
LONGEST_UID: Final = 64
_DATE, _TIME = r"\d{8}(?:-(?:\d{8})?)?|-\d{8}", r"\d{2,6}(?:-(?:\d{2,6})?)?|-\d{2,6}"
_CODE: Final = r"[A-Z0-9_ ]{1,16}"

#: What an address may ask for, and how that is written: nothing that names a patient, as the ledger keeps it.
FILTERS: Final[Mapping[str, str]] = {
    "StudyDate": _DATE,
    "StudyTime": _TIME,
    "ModalitiesInStudy": _CODE,
    "StudyInstanceUID": _UID,
    "Modality": _CODE,
    "SeriesInstanceUID": _UID,
    "BodyPartExamined": _CODE,
    "SOPClassUID": _UID,
}

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|[0-9a-f:.]{2,45}")
_INSTANCE: Final = re.compile(rf"studies/({_UID})/series/{_UID}/instances/({_UID})")

#: PS3.18, 8.7.3: the object as it is stored, in whatever transfer syntax; a server that knows no `*` sends it so too.
_OBJECT: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
#: MediaStorageSOPInstanceUID of the file meta information, which is always explicit and little endian (PS3.10, 7.1).
_STORED_AS: Final = b"\x02\x00\x03\x00UI"
_META_BYTES: Final = 4096

#: From so many failures in a row on, what is left of a study is not asked for.
_HOPELESS: Final = 3


def is_pacs(text: str) -> bool:
    """Say whether a text names a PACS rather than a folder."""
    return text[: len(SCHEME)].lower() == SCHEME


def is_uid(text: str) -> bool:
    """Say whether a text is a UID (PS3.5, 9.1)."""
    return len(text) <= LONGEST_UID and re.fullmatch(_UID, text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PacsAddress:
    """An address taken apart, in one form for all ways to write it."""

    host: str
    #: None is the default.
    port: int | None
    #: Begins with a slash, or is empty.
    path: str
    #: Keyword to value, sorted.
    filters: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, address: str) -> Self:
        """Take an address apart.

        Args:
            address: `dicomweb://host:port/path?StudyDate=20240101-20241231&Modality=XC`.

        Returns:
            Its parts.

        Raises:
            SettingsError: If it is no such address, holds credentials, or asks for what may name a patient. The text
                does not quote it.
        """
        try:
            found = urlsplit(address)
            host, port = found.hostname or "", found.port
        except ValueError:
            host, port, found = "", None, urlsplit("")
        if "@" in found.netloc:
            raise SettingsError(
                "A dicomweb:// address holds no credentials: they go into WORKER_DICOMWEB_USER and "
                "WORKER_DICOMWEB_PASSWORD, or WORKER_DICOMWEB_TOKEN, or into the files of secrets with those names."
            )
        path = found.path.rstrip("/")
        if not is_pacs(address) or not _HOST.fullmatch(host) or not _PATH.fullmatch(path) or found.fragment:
            raise SettingsError(
                "A PACS is written dicomweb://HOST:PORT/PATH?StudyDate=20240101-20241231&Modality=XC, with the path "
                "that stands before /studies."
            )
        return cls(
            host=host,
            port=None if port == DEFAULT_PORTS["https"] else port,
            path=path,
            filters=_read_filters(found.query),
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = host if self.port is None else f"{host}:{self.port}"
        query = urlencode(self.filters, safe="-")
        return f"{SCHEME}{place}{self.path}{'?' if query else ''}{query}"


def _read_filters(query: str) -> tuple[tuple[str, str], ...]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=len(FILTERS))
    except ValueError:
        pairs = [("", "")]
    filters = dict(pairs)
    if len(filters) < len(pairs) or not filters.keys() <= FILTERS.keys():
        raise SettingsError(
            f"A dicomweb:// address may ask for {', '.join(FILTERS)}, each once, and for nothing else: the ledger "
            "keeps it, so nothing that names a patient has a place in it."
        )
    for name, value in filters.items():
        if not re.fullmatch(FILTERS[name], value) or (name.endswith("UID") and not is_uid(value)):
            raise SettingsError(f"{name} in the dicomweb:// address has no sound value; see PS3.5, 6.2.")
    return tuple(sorted(filters.items()))


def insist_on_extra(what: str) -> None:
    """Refuse to go on without the libraries for DICOM.

    Args:
        what: Who needs them, as the beginning of a sentence.

    Raises:
        SettingsError: If they are not installed.
    """
    if find_spec("pydicom") is None:
        raise SettingsError(f"{what} the extra dicom; install it: pip install 'lesion-screen[dicom]'.")


@dataclass(slots=True)
class _Troubles:
    """Which studies hang or fail: none of them may take the time of the others."""

    _failures: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, study: str) -> int:
        """Count the failures in a row."""
        with self._lock:
            return self._failures[study]

    def note(self, study: str, *, failed: bool) -> None:
        """Note what became of an instance."""
        with self._lock:
            if failed:
                self._failures[study] += 1
            else:
                del self._failures[study]


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomWebPlace:
    """A PACS as the root of an archive. Errors are those of a file system and name nothing.

    Attributes:
        address: Where it is, and what of it is meant.
        server: Who has it.
    """

    address: PacsAddress
    server: WebServer
    _troubles: _Troubles = field(default_factory=_Troubles, compare=False, repr=False)
    #: The object that was read last: each of its frames asks for it.
    _latest: dict[tuple[str, int], bytes] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def at(cls, address: str, access: Access) -> Self:
        """Name a place; nothing is asked yet.

        Args:
            address: As `PacsAddress.read` takes it.
            access: How servers are spoken to.

        Returns:
            The place.

        Raises:
            SettingsError: If address or certificates are not sound, or the extra `dicom` is not installed.
        """
        found = PacsAddress.read(address)
        insist_on_extra("A dicomweb:// address needs")
        server = WebServer(host=found.host, port=found.port, path=found.path, access=access)
        server.open_pool()
        return cls(address=found, server=server)

    def __str__(self) -> str:
        return str(self.address)

    @property
    def base(self) -> str:
        """Where it is, without what of it is meant."""
        return str(replace(self.address, filters=()))

    @property
    def name(self) -> str:
        """What a batch of it is called: the server's name."""
        return self.address.host

    def read(self, relative: str, limit: int) -> bytes:
        """Retrieve an instance as it is stored (WADO-RS, PS3.18, 10.4).

        Args:
            relative: `studies/<UID>/series/<UID>/instances/<UID>`.
            limit: Bytes at most; what is longer is cut off there.

        Returns:
            The file's bytes (PS3.10, 7).

        Raises:
            OSError: ENOENT where it is not there, EACCES where it is refused, EREMOTEIO where it or its study does not
                come though the server answers, EIO where the server does not answer.
        """
        found = _INSTANCE.fullmatch(relative)
        if found is None or not all(map(is_uid, relative.split("/")[1::2])):
            raise OSError(errno.EINVAL, "not a path of an instance")
        known = self._latest.get((relative, limit))
        if known is not None:
            return known
        study, failures = found[1], self._troubles.count(found[1])
        if failures >= _HOPELESS:
            raise error_of(errno.EREMOTEIO)
        try:
            data = self._retrieve(relative, limit, brisk=failures > 0)
            if not _is_instance(data, found[2]):
                raise error_of(errno.EREMOTEIO)
        except OSError as error:
            if error.errno == errno.EREMOTEIO:
                self._troubles.note(study, failed=True)
            raise
        self._troubles.note(study, failed=False)
        self._latest.clear()
        self._latest[relative, limit] = data
        return data

    def _retrieve(self, relative: str, limit: int, *, brisk: bool) -> bytes:
        answer = self.server.get(relative, "", _OBJECT, limit + OVERHEAD_BYTES, brisk=brisk)
        try:
            return take_object(answer.content_type, answer.body, limit)
        except BrokenAnswer:
            raise error_of(errno.EREMOTEIO if self.answers() else errno.EIO) from None

    @contextmanager
    def open(self, relative: str) -> Iterator["io.BufferedReader[Any]"]:
        """Open an instance to read and seek in; the whole of it is fetched.

        Args:
            relative: As for `read`.

        Yields:
            The file.

        Raises:
            OSError: As `read`; EFBIG where no worker would have read it either.
        """
        most = self.server.access.longest
        data = self.read(relative, most + 1)
        if len(data) > most:
            raise error_of(errno.EFBIG)
        yield io.BufferedReader(io.BytesIO(data))

    def ask(self, relative: str, query: str, limit: int) -> bytes:
        """Ask for JSON (QIDO-RS, PS3.18, 10.6, and the metadata of WADO-RS, 10.4.1.1.2).

        Args:
            relative: Path below the service's root.
            query: Query string without its question mark.
            limit: Bytes at most.

        Returns:
            The body; empty where nothing was found.

        Raises:
            OSError: As `read`; EFBIG where there is more.
        """
        answer = self.server.get(relative, query, JSON, limit)
        if not answer.complete:
            raise error_of(errno.EFBIG)
        return answer.body

    def answers(self) -> bool:
        """Say whether the server answers, lets us in, and has anything in it."""
        return self.server.is_up()


def _is_instance(data: bytes, uid: str) -> bool:
    """Say whether an object is the one that was asked for, as far as its file meta information tells.

    Another one's verdict would stand beside this one's patient. What has no such information is refused later.
    """
    begin = data.find(_STORED_AS, 0, _META_BYTES)
    if begin < 0:
        return True
    start = begin + len(_STORED_AS) + 2
    length = int.from_bytes(data[start - 2 : start], "little")
    return data[start : start + length].rstrip(b"\0 ") == uid.encode("ascii")
