"""De-identification of what we write: PS3.15, annex E, Basic Application Level Confidentiality Profile.

Written here and not taken from a library: our objects hold some eighty attributes, all of which we put there, so a
list of what may stay is shorter and stricter than a program that has to cope with anybody's. What is neither in that
list nor in the table below is taken out.

Identifiers are replaced with the key of this installation. That is consistent: within a batch, and between batches
and commands of one `LESION_SCREEN_HOME`, the same study, series or instance has the same replacement, and a report
still says which instance and which patient's it is beside others. But the references to a source lead to objects of
those new identifiers only: not into the PACS that the source came from, and nowhere unless the source is de-identified
with the same key.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from producer.errors import UsageProblem
from producer.uids import replace_uid

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

_KEY_BYTES: Final = 32
_KEY_FILE: Final = "deidentify.key"

#: Attribute to action, as table E.1-1 has it for what our objects may hold: X removes, Z empties, D puts something
#: harmless in, U replaces an identifier. Where the table leaves a choice, it is the one that keeps the object valid.
ACTIONS: Final[Mapping[str, str]] = {
    "PatientName": "Z",
    "PatientID": "D",
    "IssuerOfPatientID": "X",
    "PatientBirthDate": "Z",
    "PatientSex": "Z",
    "PatientAge": "X",
    "StudyInstanceUID": "U",
    "StudyDate": "Z",
    "StudyTime": "Z",
    "StudyID": "Z",
    "StudyDescription": "X",
    "AccessionNumber": "Z",
    "ReferringPhysicianName": "Z",
    "SeriesInstanceUID": "U",
    "SOPInstanceUID": "U",
    "InstanceCreationDate": "X",
    "InstanceCreationTime": "X",
    "TimezoneOffsetFromUTC": "X",
    "ContentDate": "D",
    "ContentTime": "D",
    "DateOfSecondaryCapture": "X",
    "TimeOfSecondaryCapture": "X",
    "ReferencedSOPInstanceUID": "U",
    "UID": "U",
}

#: Descriptions and the document's content, which the basic profile would remove or replace: all of it is our own text,
#: the same for every patient, so they stay under the options that `_METHODS` names (PS3.15, E.3.4 and E.3.6).
_CLEANED: Final = frozenset({"SeriesDescription", "DerivationDescription", "ImageComments", "ContentSequence"})

#: What table E.1-1 does not name, and what no more than structures an object.
KEPT: Final = _CLEANED | {
    *("SpecificCharacterSet", "SOPClassUID", "Modality", "SeriesNumber", "InstanceNumber", "Manufacturer"),
    *("ManufacturerModelName", "SoftwareVersions"),
    # SR document
    *("CompletionFlag", "CompletionFlagDescription", "VerificationFlag", "PreliminaryFlag", "ContinuityOfContent"),
    *("CodingSchemeIdentificationSequence", "CodingSchemeDesignator", "CodingSchemeName"),
    *("ReferencedPerformedProcedureStepSequence", "PerformedProcedureCodeSequence", "ReferencedSOPSequence"),
    *("CurrentRequestedProcedureEvidenceSequence", "ReferencedSeriesSequence", "ReferencedSOPClassUID"),
    *("ContentTemplateSequence", "MappingResource", "TemplateIdentifier", "ValueType", "RelationshipType"),
    *("ConceptNameCodeSequence", "ConceptCodeSequence", "CodeValue", "LongCodeValue", "CodeMeaning", "TextValue"),
    *("MeasuredValueSequence", "MeasurementUnitsCodeSequence", "NumericValue", "FloatingPointValue"),
    *("ReferencedFrameNumber",),
    # Secondary capture
    *("ConversionType", "ImageType", "PatientOrientation", "Laterality", "BurnedInAnnotation", "SourceImageSequence"),
    *("PurposeOfReferenceCodeSequence", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio"),
}

#: PS3.16, CID 7050.
_METHODS: Final = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113104", "Clean Structured Content Option"),
    ("113105", "Clean Descriptors Option"),
)


def read_key(home: Path) -> bytes:
    """Read the key that identifiers are replaced with; one is made where there is none yet.

    Args:
        home: Folder of the one-machine state.

    Returns:
        32 bytes. Who has them and an original identifier can tell the replacement: keep them as the archive is kept.

    Raises:
        UsageProblem: If the file holds no such key.
        OSError: If it can be neither read nor made.
    """
    path = home / _KEY_FILE
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = home / f".{_KEY_FILE}.{os.getpid()}"
    if not path.exists():
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
        # A link fails where another command was first: both go on with that one's key.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UsageProblem(f"{_KEY_FILE} in LESION_SCREEN_HOME holds no key; remove it to have a new one made.")
    return key


def deidentify(made: "Dataset", key: bytes) -> "Dataset":
    """Take out of an object of ours who the patient is.

    Args:
        made: The object.
        key: See `read_key`.

    Returns:
        Another one, marked as de-identified (PS3.3, C.12.1 and C.7.1.1).
    """
    from pydicom import Dataset

    left = _clean(made, key)
    left.PatientIdentityRemoved = "YES"
    left.DeidentificationMethodCodeSequence = []
    for value, meaning in _METHODS:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        left.DeidentificationMethodCodeSequence.append(item)
    # PS3.3, C.12.1.1.9: no more is said of when than that all of it is gone.
    left.LongitudinalTemporalInformationModified = "REMOVED"
    return left


def _clean(made: "Dataset", key: bytes) -> "Dataset":
    from pydicom import Dataset

    left = Dataset()
    for element in made:
        action = ACTIONS.get(element.keyword)
        if action in _CHANGES:
            setattr(left, element.keyword, _CHANGES[action](element, key))
        elif element.keyword not in KEPT:
            continue
        elif element.VR == "SQ":
            setattr(left, element.keyword, [_clean(item, key) for item in element.value])
        else:
            left.add(element)
    return left


def _empty(_element: "DataElement", _key: bytes) -> None:
    return


def _replace(element: "DataElement", key: bytes) -> str:
    return replace_uid(str(element.value), key)


def _make_harmless(element: "DataElement", key: bytes) -> Any:
    harmless = {"ContentDate": "19000101", "ContentTime": "000000"}
    # A patient's pseudonym, so that one PACS does not take all of them for one.
    return harmless.get(element.keyword) or replace_uid(f"patient {element.value}", key)


_CHANGES: Final[Mapping[str | None, Callable[["DataElement", bytes], Any]]] = {
    "Z": _empty,
    "U": _replace,
    "D": _make_harmless,
}
