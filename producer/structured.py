"""Structured reports: a verdict as a DICOM SR document, Measurement Report (PS3.16, TID 1500)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from db.instances import ScreenedInstance
from db.models import ModelRow
from db.tables import CLASSES
from producer.derived import DISCLAIMER, refer_to, start_object
from producer.dicom import PROGRAM
from producer.overview import threshold_of
from producer.terms import SCHEME, SCHEME_NAME, diagnosis, own
from producer.uids import derive_uid

if TYPE_CHECKING:
    from highdicom.sr import AlgorithmIdentification, Measurement, MeasurementReport, QualitativeEvaluation
    from pydicom import Dataset

#: Part of the identifiers: raised when what a report says of the same verdict changes.
_KIND: Final = "report 1"
#: Of a study's series; high enough to come after the images.
_SERIES: Final = 99001
_COMPREHENSIVE_SR: Final = "1.2.840.10008.5.1.4.1.1.88.33"


def build_report(source: "Dataset", finding: ScreenedInstance, model: ModelRow) -> "Dataset":
    """Build the report of a verdict, complete, preliminary and unverified (PS3.3, C.17.2).

    Args:
        source: Headers of what was screened.
        finding: The verdict.
        model: What gave it.

    Returns:
        A Comprehensive SR document.
    """
    made = start_object(source, finding, kind=_KIND, sop_class=_COMPREHENSIVE_SR, series=_SERIES)
    made.Modality = "SR"
    made.CompletionFlag, made.VerificationFlag, made.PreliminaryFlag = "COMPLETE", "UNVERIFIED", "PRELIMINARY"
    made.CompletionFlagDescription = "Complete, not verified, not for diagnosis"
    made.CodingSchemeIdentificationSequence = [_scheme()]
    made.ReferencedPerformedProcedureStepSequence = []
    made.PerformedProcedureCodeSequence = []
    made.CurrentRequestedProcedureEvidenceSequence = [_evidence(source)]
    for element in _content(source, finding, model)[0]:
        made[element.tag] = element
    return made


def _scheme() -> "Dataset":
    from pydicom import Dataset

    item = Dataset()
    item.CodingSchemeDesignator, item.CodingSchemeName = SCHEME, SCHEME_NAME
    return item


def _evidence(source: "Dataset") -> "Dataset":
    from pydicom import Dataset

    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = source.SeriesInstanceUID, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = source.StudyInstanceUID, [series]
    return study


def _content(source: "Dataset", finding: ScreenedInstance, model: ModelRow) -> "MeasurementReport":
    from highdicom import sr
    from pydicom.sr.codedict import codes

    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derive_uid("observer"), name=PROGRAM, manufacturer_name=PROGRAM, model_name=PROGRAM
        ),
    )
    tracking = derive_uid("tracking", finding.instance_uid, str(finding.frame or ""), finding.model_digest)
    where = refer_to(source, finding)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=tracking, identifier="Image"),
        finding_type=diagnosis(finding.diagnosis),
        algorithm_id=_algorithm(finding, model),
        measurements=list(_measurements(finding)),
        qualitative_evaluations=list(_evaluations(finding, model)),
        source_images=[
            sr.SourceImageForMeasurementGroup(
                where.ReferencedSOPClassUID,
                where.ReferencedSOPInstanceUID,
                None if finding.frame is None else [finding.frame],
            )
        ],
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.DermoscopicPhotography,
        imaging_measurements=[group],
    )
    # The template is extensible: a text that every reader shows, whatever it makes of our codes.
    report[0].ContentSequence.append(
        sr.TextContentItem(
            name=codes.DCM.Comment, value=DISCLAIMER, relationship_type=sr.RelationshipTypeValues.CONTAINS
        )
    )
    return report


def _algorithm(finding: ScreenedInstance, model: ModelRow) -> "AlgorithmIdentification":
    from highdicom.sr import AlgorithmIdentification

    parameters = [f"model digest (sha256 of its manifest): {model.digest}", f"computed by: {finding.engine}"]
    if (threshold := threshold_of(model)) is not None:
        parameters.append(f"operating point of the malignant score: {threshold:.9g}")
    return AlgorithmIdentification(
        name=f"{PROGRAM} {model.name}", version=model.digest[:12], parameters=parameters, manufacturer=PROGRAM
    )


def _measurements(finding: ScreenedInstance) -> "Iterator[Measurement]":
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    numbers = [(codes.DCM.Probability, finding.confidence), (own("MALIGNANT"), finding.malignant_score)]
    numbers += [(own(f"P_{name}"), value) for name, value in zip(CLASSES, finding.probabilities, strict=True)]
    for name, value in numbers:
        yield Measurement(name=name, value=value, unit=codes.UCUM.NoUnits)


def _evaluations(finding: ScreenedInstance, model: ModelRow) -> "Iterator[QualitativeEvaluation]":
    from highdicom.sr import QualitativeEvaluation
    from pydicom.sr.codedict import codes

    answers = {True: codes.SCT.Yes, False: codes.SCT.No}
    yield QualitativeEvaluation(own("CLASS"), own(finding.diagnosis))
    if (threshold := threshold_of(model)) is not None:
        yield QualitativeEvaluation(own("PRIORITISED"), answers[finding.malignant_score >= threshold])
    yield QualitativeEvaluation(own("REFERRED"), answers[finding.referred])
    if finding.refer_reason is not None:
        yield QualitativeEvaluation(own("REFER_REASON"), own(finding.refer_reason))
