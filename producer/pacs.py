"""A PACS as an archive: its studies, series and instances are listed page by page, and no pixel is fetched."""

import errno
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from producer.dicom import PROGRAM, DicomRecord, read_dataset
from producer.errors import ArchiveProblem, ServiceProblem
from producer.objects import PACS_AWAY
from worker.dicomweb import DicomWebPlace, is_uid
from worker.wado import error_of

#: Reason code of a study whose listing failed or hung: the same command, run again, asks for it anew.
STUDY_NOT_LISTED: Final = "study_not_listed"
#: Reason code of an instance that the PACS names by what is no UID, so that it cannot be asked for.
NO_UID: Final = "no_uid"

#: Rows that are asked for at once; servers may give fewer, or all they have.
PAGE_ROWS: Final = 200
#: No answer is read beyond that: a few thousand studies, or the headers of as many images.
_ANSWER_BYTES: Final = 8 << 20
#: Studies that are listed or wait to be listed at once, for each connection.
_WINDOW: Final = 4

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_MODALITY, _SOP_CLASS, _ROWS, _MODEL = "00080060", "00080016", "00280010", "00081090"
#: PS3.18, 10.6.3.3: how many series a study has, and instances a series.
_SERIES_COUNT, _INSTANCE_COUNT = "00201206", "00201209"

#: Filters of an address, by the level that they are asked at and checked on, with their tags (PS3.18, 10.6.1.2).
_FILTERS: Final[Mapping[str, Mapping[str, str]]] = {
    "studies": {
        "StudyDate": "00080020",
        "StudyTime": "00080030",
        "ModalitiesInStudy": "00080061",
        "StudyInstanceUID": _STUDY,
    },
    "series": {"Modality": _MODALITY, "SeriesInstanceUID": _SERIES, "BodyPartExamined": "00180015"},
    "instances": {"SOPClassUID": _SOP_CLASS},
}
#: Of these a row names another form, or several, so that the server's word is taken.
_UNCHECKED: Final = frozenset({"StudyTime", "ModalitiesInStudy"})

#: What is kept of the headers of an instance: what `producer.dicom` reads, what it is, and that it has pixels.
_KEPT: Final = (
    *(
        "00080016",
        "00080018",
        "00080020",
        "00080060",
        _MODEL,
        "00082218",
        "00100020",
        "00100030",
        "00100040",
        "00101010",
    ),
    *("00180015", "0020000D", "0020000E", "00280008", "00280010"),
)
#: What a code is cut off at, as in PS3.5, 6.2.
_LONGEST_CODE: Final = 16

#: What pydicom raises on values that are none.
_UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedInstance:
    """An image that a PACS lists, or what it could not list."""

    #: As `DicomWebPlace.read` takes it; None where nothing can be asked for.
    path: str | None = None
    study_uid: str | None = None
    #: The headers that are kept, as DICOM JSON.
    headers: Row = field(default_factory=dict, repr=False)
    #: Reason code where there is no path.
    rejected: str | None = None

    def read(self) -> DicomRecord:
        """Read the headers; not for several threads at once, as pydicom's warnings are held back meanwhile."""
        return _read_headers(self.headers)


class PacsListing:
    """Streams the images of a PACS that its address asks for, in no order, and counts what is passed over.

    Every request is bounded in bytes and time, and so are those under way at once, so that memory stays flat whatever
    the number of studies. A study that cannot be listed while the server answers is one rejected entry.

    Args:
        place: What to list.
        page_rows: Rows that are asked for at once.
    """

    def __init__(self, place: DicomWebPlace, page_rows: int = PAGE_ROWS) -> None:
        self._place = place
        self._page_rows = page_rows
        self._filters = dict(place.address.filters)
        self._counting = threading.Lock()
        #: Objects that are no images, by modality.
        self.ignored: Counter[str] = Counter()

    def __iter__(self) -> Iterator[ListedInstance]:
        connections = self._place.server.access.connections
        pool = ThreadPoolExecutor(connections, thread_name_prefix="study")
        pending: set[Future[list[ListedInstance]]] = set()
        try:
            for study in self.studies():
                pending.add(pool.submit(self._list_study, study))
                if len(pending) >= connections * _WINDOW:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from _all_of(done)
            yield from _all_of(wait(pending).done)
        except OSError as error:
            raise explain(error) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def studies(self) -> Iterator[Row]:
        """Stream the studies that are asked for, each once.

        Raises:
            OSError: As `DicomWebPlace.ask`; ENOTSUP where the server does not page.
        """
        wanted = self._wanted("studies")
        if "Modality" in self._filters:
            # What a study is asked for; its series are asked for the modality itself.
            wanted.setdefault("ModalitiesInStudy", self._filters["Modality"])
        # On disk beyond a few pages, as all that is staged.
        with closing(sqlite3.connect("", isolation_level=None)) as seen:
            seen.executescript("PRAGMA journal_mode = OFF; CREATE TABLE study (uid TEXT PRIMARY KEY) WITHOUT ROWID;")

            def is_new(uid: str) -> bool:
                return seen.execute("INSERT OR IGNORE INTO study VALUES (?)", (uid,)).rowcount > 0

            yield from self._pages("studies", "studies", wanted, _STUDY, is_new)

    def _list_study(self, study: Row) -> list[ListedInstance]:
        uid = _text(study, _STUDY)
        if uid is None or not is_uid(uid):
            return [ListedInstance(rejected=NO_UID)]
        try:
            return list(self._instances(study, uid))
        except OSError as error:
            # What is refused or gone for one study may be so for the whole place.
            if error.errno == errno.EIO or not self._place.answers():
                raise error_of(errno.EIO) from None
            return [ListedInstance(study_uid=uid, rejected=STUDY_NOT_LISTED)]

    def _instances(self, study: Row, uid: str) -> Iterator[ListedInstance]:
        path = f"studies/{uid}/series"
        count = _number(study, _SERIES_COUNT)
        for series in self._pages("series", path, self._wanted("series"), _SERIES, _remember(), count):
            name = _text(series, _SERIES)
            if name is None or not is_uid(name):
                yield ListedInstance(study_uid=uid, rejected=NO_UID)
            else:
                yield from self._of_series({**study, **series}, uid, f"{path}/{name}")

    def _of_series(self, above: Row, study: str, series: str) -> Iterator[ListedInstance]:
        path, headers = f"{series}/instances", None
        wanted, count = self._wanted("instances"), _number(above, _INSTANCE_COUNT)
        for row in self._pages("instances", path, wanted, _INSTANCE, _remember(), count):
            uid = _text(row, _INSTANCE)
            if uid is None or not is_uid(uid):
                yield ListedInstance(study_uid=study, rejected=NO_UID)
                continue
            if headers is None:
                headers = self._headers_of_series(series)
            known = {**_keep(above), **_keep(row), **(headers.get(uid) or self._headers(f"{path}/{uid}").get(uid, {}))}
            if _ROWS in known and _text(known, _MODEL) != PROGRAM:
                yield ListedInstance(path=f"{path}/{uid}", study_uid=study, headers=known)
            else:
                with self._counting:
                    self.ignored[(_text(known, _MODALITY) or "(none)")[:_LONGEST_CODE]] += 1

    def _headers_of_series(self, path: str) -> Mapping[str, Row]:
        try:
            return self._headers(path)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            # They are asked for one by one.
            return {}

    def _headers(self, path: str) -> Mapping[str, Row]:
        """Fetch the headers of what is below a path, by instance.

        QIDO-RS alone does not do: servers leave sequences out, and one of them says which part of the body is seen.
        """
        rows = self._ask(f"{path}/metadata", "")
        return {_text(row, _INSTANCE) or "": _keep(row) for row in rows}

    def _pages(
        self,
        level: str,
        path: str,
        wanted: Mapping[str, str],
        key: str,
        is_new: Callable[[str], bool],
        count: int | None = None,
    ) -> Iterator[Row]:
        """Ask page by page, until nothing new comes, and give every row once.

        A short page says nothing: servers cap them. With as many rows as there are said to be, it is the last. A page
        with nothing new is believed where a longer one has nothing new either: some servers ignore the offset, and
        Orthanc 1.10 counts a page from the very first row on where ModalitiesInStudy is asked for. Rows come twice
        where the list moves while it is read.
        """
        fields = [("includefield", tag) for tag in _KEPT] if level == "instances" else []
        offset, longer = 0, False
        while True:
            limit = self._page_rows + (offset if longer else 0)
            query = [*wanted.items(), *fields, ("limit", str(limit)), ("offset", str(offset))]
            rows = self._ask(path, urlencode(query, safe="-"))
            new = [row for row in rows if is_new(_text(row, key) or "")]
            yield from (row for row in new if self._matches(level, row))
            offset += len(rows)
            if count is not None and len(rows) < limit and offset >= count:
                return
            if new:
                continue
            if longer or not offset:
                break
            longer = True
        if len(rows) == self._page_rows and level == "studies" and "StudyInstanceUID" not in wanted:
            # As many as were asked for at first, again and again: there are more, and they must not go unnoticed.
            raise error_of(errno.ENOTSUP)

    def _wanted(self, level: str) -> dict[str, str]:
        return {name: self._filters[name] for name in _FILTERS[level] if name in self._filters}

    def _matches(self, level: str, row: Row) -> bool:
        # Servers may ignore a filter that they do not know.
        return all(
            name in _UNCHECKED or _is_within(name, _text(row, tag), self._filters[name])
            for name, tag in _FILTERS[level].items()
            if name in self._filters
        )

    def _ask(self, path: str, query: str) -> Sequence[Row]:
        body = self._place.ask(path, query, _ANSWER_BYTES)
        try:
            rows = json.loads(body) if body.strip() else []
        except (ValueError, RecursionError):
            rows = None
        if isinstance(rows, dict):
            rows = [rows]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise error_of(errno.EREMOTEIO)
        return rows


def insist_on_studies(place: DicomWebPlace) -> None:
    """Refuse a PACS that does not answer or has nothing that its address asks for.

    Args:
        place: The PACS.

    Raises:
        ArchiveProblem: If no study matches.
        ServiceProblem: If it does not answer, or refuses us.
    """
    try:
        if any(True for _ in PacsListing(place, page_rows=1).studies()):
            return
    except OSError as error:
        raise explain(error) from None
    raise ArchiveProblem("The PACS has no study that this address asks for; check its path and what follows the ?.")


def explain(error: OSError) -> ArchiveProblem | ServiceProblem:
    """Say what a failure of the whole place means to whoever gave its address."""
    if error.errno == errno.ENOENT:
        return ArchiveProblem("The server has no DICOMweb under this path; give what stands before /studies.")
    if error.errno == errno.ENOTSUP:
        return ArchiveProblem("The PACS does not page its lists; ask for less at once, such as one month of StudyDate.")
    if error.errno == errno.EFBIG:
        return ArchiveProblem("The PACS lists too much at once; ask for less, such as one month of StudyDate.")
    return ServiceProblem(PACS_AWAY)


def _all_of(done: set[Future[list[ListedInstance]]]) -> Iterator[ListedInstance]:
    for future in done:
        yield from future.result()


def _remember() -> Callable[[str], bool]:
    seen: set[str] = set()

    def is_new(uid: str) -> bool:
        known = uid in seen
        seen.add(uid)
        return not known

    return is_new


def _keep(row: Row) -> Row:
    return {tag: row[tag] for tag in _KEPT if tag in row}


def _read_headers(headers: Row) -> DicomRecord:
    from pydicom import config
    from pydicom.datadict import dictionary_VR
    from pydicom.dataset import Dataset

    # It quotes values in warnings and in its log.
    config.settings.reading_validation_mode = config.IGNORE
    dataset = Dataset()
    for tag in _KEPT:
        element = headers.get(tag)
        # What cannot be read is as good as not there, and what has another form than it should is not looked at.
        if isinstance(element, dict) and element.get("vr") == dictionary_VR(tag):
            with suppress(*_UNREADABLE):
                dataset.update(Dataset.from_json({tag: element}))
    return read_dataset(dataset)


def _value(row: Row, tag: str) -> Any:
    # PS3.18, F.2.2; whatever the server sends.
    element = row.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _text(row: Row, tag: str) -> str | None:
    value = _value(row, tag)
    return value.strip(" \0") or None if isinstance(value, str) else None


def _number(row: Row, tag: str) -> int | None:
    value = _value(row, tag)
    return value if isinstance(value, int) and value > 0 else None


def _is_within(name: str, found: str | None, wanted: str) -> bool:
    if found is None:
        return True
    if name == "StudyDate":
        first, dash, last = wanted.partition("-")
        return first <= found <= (last or ("9" * 8 if dash else first))
    return found == wanted
