"""Derived objects: what our reports and overlays have in common, in DICOM's terms."""

import io
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from db.instances import ScreenedInstance
from producer.dicom import PROGRAM
from producer.sources import PATIENT_AND_STUDY
from producer.uids import derive_uid

if TYPE_CHECKING:
    from pydicom import Dataset

#: Said in every object of ours.
DISCLAIMER: Final = (
    "Not a medical device and not for diagnosis: a research program that orders images for a person to read. "
    "Not verified by a person. A low score means not prioritised, never benign."
)
SERIES_DESCRIPTION: Final = "lesion-screen: unverified, not for diagnosis"

#: Type 2 attributes of the Patient, General Study and General Series modules: there, and empty where nothing is known.
_NEVER_ABSENT: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_OFFSET: Final = re.compile(r"([+-])(\d\d)([0-5]\d)")


def start_object(source: "Dataset", finding: ScreenedInstance, *, kind: str, sop_class: str, series: int) -> "Dataset":
    """Begin an object that lies beside its source: same patient, same study, a series of its own.

    Identifiers follow from the digests, dates from the verdict: the same verdict gives the same bytes.

    Args:
        source: Headers of what was screened.
        finding: The verdict.
        kind: What it is to become; part of its identifiers.
        sop_class: Its SOP class.
        series: Number of its series.

    Returns:
        A dataset with Patient, Study, Series, Equipment and SOP Common modules (PS3.3, C.7.1 to C.7.5 and C.12.1).
    """
    from pydicom import Dataset

    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*PATIENT_AND_STUDY, "TimezoneOffsetFromUTC"):
        if keyword in source:
            setattr(made, keyword, source.get(keyword))
        elif keyword in _NEVER_ABSENT:
            setattr(made, keyword, None)
    study, digests = str(source.StudyInstanceUID), (finding.image_digest, finding.input_digest, finding.model_digest)
    made.SeriesInstanceUID = derive_uid(kind, "series", study, finding.model_digest)
    made.SOPInstanceUID = derive_uid(kind, *digests, finding.instance_uid, str(finding.frame or ""))
    made.SOPClassUID = sop_class
    made.SeriesNumber, made.SeriesDescription = series, SERIES_DESCRIPTION
    made.InstanceNumber = finding.frame or _number(source.get("InstanceNumber"))
    # There is no maker but the program.
    made.Manufacturer = made.ManufacturerModelName = PROGRAM
    made.SoftwareVersions = version(PROGRAM)
    moment = datetime.fromtimestamp(finding.created_at, _zone(source))
    made.InstanceCreationDate = made.ContentDate = f"{moment:%Y%m%d}"
    made.InstanceCreationTime = made.ContentTime = f"{moment:%H%M%S.%f}"
    return made


def refer_to(source: "Dataset", finding: ScreenedInstance) -> "Dataset":
    """Refer to what was screened (PS3.3, table 10-3).

    Args:
        source: Its headers.
        finding: The verdict.

    Returns:
        An item with SOP class, instance and, of several frames, the frame.
    """
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if finding.frame is not None:
        item.ReferencedFrameNumber = finding.frame
    return item


def encode_object(made: "Dataset") -> bytes:
    """Write an object as a file (PS3.10), Explicit VR Little Endian.

    Args:
        made: The object.

    Returns:
        The file's bytes; the same for the same object.
    """
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with io.BytesIO() as file:
        dcmwrite(file, made, enforce_file_format=True)
        return file.getvalue()


def _zone(source: "Dataset") -> tzinfo:
    # The attribute says so of every time in the object (PS3.3, C.12.1.1.8); without it the ledger's own is taken.
    found = _OFFSET.fullmatch(str(source.get("TimezoneOffsetFromUTC") or ""))
    if found is None or int(found[2]) > 14:  # noqa: PLR2004 - no zone is farther
        return UTC
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-offset if found[1] == "-" else offset)


def _number(found: object) -> int:
    return found if isinstance(found, int) and 0 < found < 2**31 else 1
