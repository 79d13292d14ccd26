"""Source objects: their headers are read again for a report, because the ledger keeps no name of a patient."""

import errno
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from db.instances import ScreenedInstance
from producer.objects import say_away
from producer.paths import open_below
from producer.rehash import check_root
from worker.dicomweb import DicomWebPlace
from worker.objects import ObjectFolder

if TYPE_CHECKING:
    from pydicom import Dataset

#: What a report repeats of its source so that it lies beside it (PS3.3, C.7.1.1, C.7.2.1 and C.7.2.2).
PATIENT_AND_STUDY: Final = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    "ReferringPhysicianName",
)
#: What it refers to it by, and what it has to know of it.
_INSTANCE: Final = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames"),
    *("BurnedInAnnotation", "TimezoneOffsetFromUTC"),
)


_IDENTIFIERS: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_TAGS: Final = ["SpecificCharacterSet", *PATIENT_AND_STUDY, *_INSTANCE]
#: Of one instance's metadata from a PACS; pixels are no part of them.
_METADATA_BYTES: Final = 8 * 1024 * 1024


class SourceProblem(Exception):  # noqa: N818 - it says what happened
    """The source of a report cannot be had; its text is one of `PROBLEMS`."""


#: Why an instance gets no report, in words.
PROBLEMS: Final = {
    "missing_file": "whose object is gone",
    "unreadable_file": "whose object cannot be read",
    "changed_file": "whose object is not what was scored",
}


@contextmanager
def say_nothing() -> Iterator[None]:
    """Keep pydicom and highdicom from quoting a header in a warning or a log line, while headers are at hand."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [one.disabled for one in loggers]
    for one in loggers:
        one.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, was in zip(loggers, before, strict=True):
            one.disabled = was


def read_source(root: Path | ObjectFolder | DicomWebPlace, finding: ScreenedInstance) -> "Dataset":
    """Read the headers of a screened object, which must be what was scored.

    A file is held against its digest; of a PACS the headers alone are asked for (WADO-RS, PS3.18, 10.4.1.1.2), where
    the identifier stands for the object.

    Args:
        root: Where this host has the archive.
        finding: What was screened.

    Returns:
        The headers that a report needs, those that are there; no pixels and nothing private.

    Raises:
        SourceProblem: If the object is gone, cannot be read, or is another one.
        ServiceProblem: If the archive does not answer.
    """
    try:
        headers = _ask_pacs(root, finding) if isinstance(root, DicomWebPlace) else _read_file(root, finding)
    except OSError as error:
        if not isinstance(root, Path) and error.errno == errno.EIO:
            raise say_away(root) from None
        check_root(root)
        gone = error.errno in {errno.ENOENT, errno.ENOTDIR}
        raise SourceProblem("missing_file" if gone else "unreadable_file") from None
    if headers.get("SOPInstanceUID") != finding.instance_uid:
        raise SourceProblem("changed_file")
    return headers


def _read_file(root: Path | ObjectFolder, finding: ScreenedInstance) -> "Dataset":
    from pydicom import dcmread

    with open_below(root, finding.path) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != finding.image_digest:
            raise SourceProblem("changed_file")
        file.seek(0)
        return _parse(lambda: dcmread(file, stop_before_pixels=True, specific_tags=_TAGS))


def _ask_pacs(root: DicomWebPlace, finding: ScreenedInstance) -> "Dataset":
    from pydicom import Dataset

    told = root.ask(f"{finding.path}/metadata", "", _METADATA_BYTES)
    return _parse(lambda: Dataset.from_json(json.loads(told)[0]))


def _parse(read: "Callable[[], Dataset]") -> "Dataset":
    try:
        return keep_headers(read())
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - foreign headers make the parser raise whatever it meets
        # The text may quote them.
        raise SourceProblem("unreadable_file") from None


def keep_headers(found: "Dataset") -> "Dataset":
    """Keep what a report needs of a source's headers, and nothing else.

    Args:
        found: Any headers, of a file or of a PACS.

    Returns:
        A new dataset, in Unicode.

    Raises:
        Exception: Of any type, if it does not say which instance it is, or holds what no object could.
    """
    from pydicom import Dataset, dcmwrite
    from pydicom.uid import UID

    # Values are read from their bytes when they are first looked at.
    found.decode()
    kept = Dataset()
    kept.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*PATIENT_AND_STUDY, *_INSTANCE):
        if keyword in found:
            setattr(kept, keyword, found.get(keyword))
    if not all(UID(kept.get(keyword)).is_valid for keyword in _IDENTIFIERS):
        raise ValueError("no sound identifiers")
    # A PACS may tell a number for a name. What cannot be written is found out here, where it is one source's fault.
    with io.BytesIO() as file:
        dcmwrite(file, kept, implicit_vr=False, little_endian=True)
    return kept
