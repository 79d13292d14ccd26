"""Stand-in until the branch that reads files is merged."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomRecord:
    """What headers say."""

    study_uid: str | None
    series_uid: str | None
    instance_uid: str | None
    frames: int
    age: float | None
    sex: str | None
    localization: str | None
    patient_ref: str | None
    rejected: str | None
    problems: tuple[str, ...]


def read_dataset(dataset: Any) -> DicomRecord:
    """Read headers."""
    age = dataset.get("PatientAge")
    region = dataset.get("AnatomicRegionSequence")
    return DicomRecord(
        study_uid=str(dataset.StudyInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        instance_uid=str(dataset.SOPInstanceUID),
        frames=int(dataset.get("NumberOfFrames") or 1),
        age=float(age[:3]) if age else None,
        sex={"F": "female", "M": "male"}.get(dataset.get("PatientSex")),
        localization=str(region[0].CodeMeaning).lower() if region else None,
        patient_ref=str(dataset.get("PatientID")),
        rejected=None,
        problems=(),
    )
