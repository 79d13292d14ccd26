"""Source objects: their headers are read again for a report, because the ledger keeps no name of a patient."""

import errno
import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from db.instances import ScreenedInstance
from producer.errors import ServiceProblem
from producer.objects import AWAY
from producer.paths import open_below
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
    *("BurnedInAnnotation", "TimezoneOffsetFromUTC", "SpecificCharacterSet"),
)


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
    """Keep pydicom and highdicom from quoting a header in a warning or a log line."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom", "dicomweb_client")]
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


def read_source(root: Path | ObjectFolder, finding: ScreenedInstance) -> "Dataset":
    """Read the headers of a screened object, which must be the very bytes that were scored.

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
        with open_below(root, finding.path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != finding.image_digest:
                raise SourceProblem("changed_file")
            file.seek(0)
            headers = _parse(file)
    except OSError as error:
        if isinstance(root, ObjectFolder) and error.errno == errno.EIO:
            raise ServiceProblem(AWAY) from None
        gone = error.errno in {errno.ENOENT, errno.ENOTDIR}
        raise SourceProblem("missing_file" if gone else "unreadable_file") from None
    if headers.get("SOPInstanceUID") != finding.instance_uid:
        raise SourceProblem("changed_file")
    return headers


def _parse(file: IO[Any]) -> "Dataset":
    from pydicom import dcmread

    try:
        with say_nothing():
            found = dcmread(file, stop_before_pixels=True, specific_tags=[*PATIENT_AND_STUDY, *_INSTANCE])
            # Values are read from their bytes when they are first looked at.
            found.decode()
            return keep_headers(found)
    except OSError:
        raise
    except Exception:
        # Foreign headers make the parser raise whatever it meets; the text may quote them.
        raise SourceProblem("unreadable_file") from None


def keep_headers(found: "Dataset") -> "Dataset":
    """Keep what a report needs of a source's headers, and nothing else.

    Args:
        found: Any headers, of a file or of a PACS.

    Returns:
        A new dataset, in Unicode.
    """
    from pydicom import Dataset

    kept = Dataset()
    for keyword in (*PATIENT_AND_STUDY, *_INSTANCE):
        if keyword in found and keyword != "SpecificCharacterSet":
            setattr(kept, keyword, found.get(keyword))
    return kept
