"""DICOM headers: what an object says of its image and its patient, and why it cannot be screened; never its pixels.

`producer/DICOM.md` says the same for users. pydicom is the extra `dicom` and is imported when the first object is read.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from producer.dicom_sites import site_of_body_part, site_of_code
from producer.records import OLDEST_YEARS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

T = TypeVar("T")

#: Photographs of skin (PS3.4, B.5): Secondary Capture and its multi-frame forms, VL Photographic and Dermoscopic
#: Photography Image Storage. `model.dicom` has the same list.
SOP_CLASSES: Final = frozenset(
    {
        *(f"1.2.840.10008.5.1.4.1.1.7{form}" for form in ("", ".1", ".2", ".3", ".4")),
        "1.2.840.10008.5.1.4.1.1.77.1.4",
        "1.2.840.10008.5.1.4.1.1.77.1.7",
    }
)
#: Most frames of an object: each is an item, and its file is read for it.
MOST_FRAMES: Final = 1000

#: Reason code of an object that nobody can read here: install lesion-screen[dicom].
NOT_INSTALLED: Final = "needs_dicom_extra"
#: What stand for objects that are no items: a DICOMDIR, and what `lesion-screen dicom` wrote into the same place.
DIRECTORY: Final = "dicomdir"
OURS: Final = "ours"
NO_ITEMS: Final = frozenset({DIRECTORY, OURS})

#: Manufacturer's Model Name of what we write.
PROGRAM: Final = "lesion-screen"

#: Media Storage Directory Storage (PS3.10, 8).
_DIRECTORY_CLASS: Final = "1.2.840.10008.1.3.10"
#: PS3.10, 7.1.
_PREAMBLE_BYTES: Final = 128
_MAGIC: Final = b"DICM"
#: Read at first, which nearly always is all of the header; and at most, where a thumbnail or private data come first.
_FIRST_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 22

#: The tag of an item of a sequence, either end first. pydicom makes a data set of each, also of those that nobody asked
#: for, which takes 0.1 ms.
_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_MOST_ITEMS: Final = 10_000

_IMPLICIT: Final = "1.2.840.10008.1.2"
_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"

#: The last of the file meta information, and in the order of their tags what is read of the object itself; reading
#: ends behind the last.
_LAST_META: Final = 0x0002FFFF
#: Media Storage SOP Class UID and Transfer Syntax UID.
_MEDIA_CLASS, _SYNTAX = 0x00020002, 0x00020010
_TAGS: Final = (
    0x00080005,  # Specific Character Set
    0x00080016,  # SOP Class UID
    0x00080018,  # SOP Instance UID
    0x00080020,  # Study Date
    0x00081090,  # Manufacturer's Model Name
    0x00082218,  # Anatomic Region Sequence
    0x00100020,  # Patient ID
    0x00100030,  # Patient's Birth Date
    0x00100040,  # Patient's Sex
    0x00101010,  # Patient's Age
    0x00180015,  # Body Part Examined
    0x0020000D,  # Study Instance UID
    0x0020000E,  # Series Instance UID
    0x00280008,  # Number of Frames
)

#: PS3.5, 9.1; leading zeros are let through, as devices write them.
_UID: Final = re.compile(r"[0-9.]{1,64}")
#: PS3.5, 6.2: AS, and how many of each make a year.
_AGE: Final = re.compile(r"(\d{1,3})([DWMY])")
_A_YEAR: Final = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
#: PS3.5, 6.2: DA, and the form of before 1993.
_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
#: PS3.3, C.2.3.
_SEXES: Final = {"F": "female", "M": "male", "O": "other"}
#: PS3.5, 6.2: LO has 64 characters; some systems write more.
_LONGEST_TEXT: Final = 500

#: What pydicom's parsers raise on broken bytes.
_BROKEN: Final = (
    *(ValueError, TypeError, LookupError, AttributeError, NotImplementedError, OverflowError, EOFError),
    *(RecursionError, MemoryError, struct.error, zlib.error, OSError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomRecord:
    """What the header of one object says.

    Attributes:
        frames: 1 of an object that has but one.
        age: Years.
        localization: Body site in HAM10000's or the ISIC Archive's words.
        patient_ref: Patient ID.
        rejected: Reason code where the object cannot be screened.
        problems: Codes of what in the header could not be used.
    """

    study_uid: str | None = None
    series_uid: str | None = None
    instance_uid: str | None = None
    frames: int = 1
    age: float | None = None
    sex: str | None = None
    localization: str | None = None
    patient_ref: str | None = None
    rejected: str | None = None
    problems: tuple[str, ...] = ()


def is_installed() -> bool:
    """Say whether the extra `dicom` is installed."""
    return find_spec("pydicom") is not None


def read_file(file: IO[bytes]) -> DicomRecord | None:
    """Read the headers of a file, at most 4 MiB of it.

    Args:
        file: At its start.

    Returns:
        What they say, or None where the file is no DICOM file.

    Raises:
        OSError: If the file cannot be read.
    """
    head = file.read(_FIRST_BYTES)
    if head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + len(_MAGIC)] != _MAGIC:
        return None
    if not is_installed():
        return DicomRecord(rejected=NOT_INSTALLED)
    if len(head) == _FIRST_BYTES:
        dataset, whole = _parse(head)
        if not whole:
            head += file.read(_MOST_BYTES - _FIRST_BYTES)
            dataset, _ = _parse(head)
    else:
        dataset, _ = _parse(head)
    return DicomRecord(rejected="unreadable") if dataset is None else read_dataset(dataset)


def _parse(head: bytes) -> "tuple[Dataset | None, bool]":
    """Read the data set of a file's first bytes; the second says that its end, or what follows it, was seen."""
    from pydicom.filereader import read_dataset as read_elements

    seen: list[bool] = []

    def read(data: bytes, last: int, *, implicit: bool = False, little: bool = True) -> "tuple[Dataset, int]":
        buffer = io.BytesIO(data)

        def behind(tag: Any, _kind: str | None, _length: int) -> bool:
            if int(tag) > last:
                seen.append(True)
            return int(tag) > last

        tags: list[Any] = [_MEDIA_CLASS, _SYNTAX, *_TAGS]
        found = read_elements(buffer, implicit, little, stop_when=behind, specific_tags=tags)
        return found, buffer.tell()

    def parse() -> "Dataset":
        meta, length = read(head[_PREAMBLE_BYTES + len(_MAGIC) :], _LAST_META)
        seen.clear()
        body = head[_PREAMBLE_BYTES + len(_MAGIC) + length :]
        syntax = str(meta[_SYNTAX].value)
        if syntax == _DEFLATED:
            body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, _MOST_BYTES)
        if sum(map(body.count, _ITEMS)) > _MOST_ITEMS:
            raise ValueError("more items than any header has")
        dataset, _ = read(body, _TAGS[-1], implicit=syntax == _IMPLICIT, little=syntax != _BIG_ENDIAN)
        if "SOPClassUID" not in dataset and _MEDIA_CLASS in meta:
            # A DICOMDIR has it here alone.
            dataset.SOPClassUID = meta[_MEDIA_CLASS].value
        return dataset

    return _try(parse), bool(seen)


def _try(read: Callable[[], T]) -> T | None:
    # pydicom quotes values in its warnings, and raises whatever it meets in broken bytes.
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except _BROKEN:
            return None


def read_dataset(dataset: "Dataset") -> DicomRecord:
    """Read a data set of headers: a file's, or one that a PACS sent as JSON.

    Args:
        dataset: The headers; values that make no sense count as missing.

    Returns:
        What they say.
    """
    problems: list[str] = []
    sop_class = _text(dataset, "SOPClassUID")
    if sop_class == _DIRECTORY_CLASS:
        return DicomRecord(rejected=DIRECTORY)
    if _text(dataset, "ManufacturerModelName") == PROGRAM:
        return DicomRecord(rejected=OURS)
    study, series, instance = (
        _uid(dataset, name, problems) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    frames = _count_frames(dataset)
    rejected = None
    if sop_class is None or frames is None:
        rejected = "unreadable"
    elif sop_class not in SOP_CLASSES:
        rejected = "unsupported_format"
    elif frames > MOST_FRAMES:
        rejected = "too_many_frames"
    return DicomRecord(
        study_uid=study,
        series_uid=series,
        instance_uid=instance,
        frames=1 if rejected or frames is None else frames,
        age=_age(dataset, problems),
        sex=_sex(dataset, problems),
        localization=_site(dataset, problems),
        patient_ref=_patient(dataset, problems),
        rejected=rejected,
        problems=() if rejected else tuple(problems),
    )


def _text(dataset: "Dataset", name: str) -> str | None:
    """Read a value as text; None where it is missing, empty or broken, and the first of several."""

    def read() -> str:
        value = dataset.get(name)
        if value is not None and not isinstance(value, str | int | float) and hasattr(value, "__getitem__"):
            value = value[0] if len(value) else None
        return "" if value is None else str(value).strip(" \0")

    return _try(read) or None


def _uid(dataset: "Dataset", name: str, problems: list[str]) -> str | None:
    text = _text(dataset, name)
    if text is not None and _UID.fullmatch(text) is None:
        problems.append("bad_uid")
        return None
    return text


def _count_frames(dataset: "Dataset") -> int | None:
    if "NumberOfFrames" not in dataset:
        return 1
    text = _text(dataset, "NumberOfFrames")
    if text is None:
        # Empty is how some write one; broken is another thing.
        return 1 if _try(lambda: not dataset.get("NumberOfFrames")) else None
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) and int(text) else None


def _age(dataset: "Dataset", problems: list[str]) -> float | None:
    text = _text(dataset, "PatientAge")
    found = _AGE.fullmatch(text) if text else None
    if found is not None:
        years = int(found[1]) / _A_YEAR[found[2]]
    else:
        if text is not None:
            problems.append("bad_age")
        born, studied = _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate")
        if born is None or studied is None:
            return None
        years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    if not 0 <= years <= OLDEST_YEARS:
        problems.append("bad_age")
        return None
    return float(years)


def _date(dataset: "Dataset", name: str) -> date | None:
    found = _DATE.fullmatch(_text(dataset, name) or "")
    return None if found is None else _try(lambda: date(*map(int, found.groups())))


def _sex(dataset: "Dataset", problems: list[str]) -> str | None:
    text = _text(dataset, "PatientSex")
    if text is not None and text.upper() not in _SEXES:
        problems.append("bad_sex")
    return _SEXES.get((text or "").upper())


def _site(dataset: "Dataset", problems: list[str]) -> str | None:
    region = _try(lambda: dataset.get("AnatomicRegionSequence") and dataset.AnatomicRegionSequence[0])
    code = (_text(region, "CodeValue") or _text(region, "LongCodeValue")) if region else None
    scheme = _text(region, "CodingSchemeDesignator") if region else None
    part = _text(dataset, "BodyPartExamined")
    site = (site_of_code(scheme, code) if scheme and code else None) or (site_of_body_part(part) if part else None)
    if site is None and (code or part):
        problems.append("unknown_site")
    return site


def _patient(dataset: "Dataset", problems: list[str]) -> str | None:
    text = _text(dataset, "PatientID")
    if text is not None and len(text) > _LONGEST_TEXT:
        problems.append("bad_patient_id")
        return None
    return text
