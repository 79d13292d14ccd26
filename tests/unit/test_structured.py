"""Reports, overlays and their de-identification as objects, before anybody else has seen them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.sr.codedict import codes
from pydicom.uid import UID

import producer.structured
from db.instances import ScreenedInstance
from db.models import ModelRow
from db.tables import CLASSES, ModelState
from producer.blending import Blended
from producer.captures import build_capture
from producer.deidentify import ACTIONS, KEPT, deidentify, read_key
from producer.derived import encode_object
from producer.errors import UsageProblem
from producer.sources import PATIENT_AND_STUDY, keep_headers, say_nothing
from producer.structured import build_report
from producer.terms import DIAGNOSES, SCHEME
from producer.uids import derive_uid, replace_uid
from producer.worklist import CLASS_NAMES
from tests.reported import RECORDED_AT, photograph
from tests.security.canary import is_in

KEY = bytes(range(32))
PICTURE = Blended(width=33, height=31, pixels=bytes(range(33)) * 93, compressed_bytes=700)
MODEL = ModelRow(
    digest="c" * 64,
    name="soft attention",
    backbone="b",
    parent=None,
    state=ModelState.ACTIVE,
    metrics={"operating_point": {"threshold": 0.5}},
    data_digest="d" * 64,
    created_at=0,
)
FINDING = ScreenedInstance(
    item_id=1,
    path="a.dcm",
    frame=None,
    instance_uid="1.2.3.1.9.1",
    image_digest="a" * 64,
    input_digest="b" * 64,
    model_digest=MODEL.digest,
    diagnosis="mel",
    confidence=0.4000000000000012,
    malignant_score=0.7,
    probabilities=(0.1, 0.2, 0.05, 0.05, 0.4000000000000012, 0.1, 0.1),
    referred=True,
    refer_reason="low_confidence",
    engine="tensorflow-cpu",
    evidence=None,
    created_at=RECORDED_AT,
)

#: Table E.1-1 of PS3.15 (2026c), column "Basic Prof.", for what the modules of both our IODs have (PS3.3, A.8.1 and
#: A.35.3), without clinical trials and specimens. "XZ" is the table's "X/Z", and so on; "U" of a sequence is "U*".
BASIC_PROFILE = {
    "X": (
        "IssuerOfPatientID OtherPatientIDsSequence OtherPatientNames PatientBirthTime PatientComments PatientAge "
        "EthnicGroupCodeSequence ReferencedPatientSequence ReferencedPatientPhotoSequence ResponsiblePerson "
        "ResponsibleOrganization RetrieveAETitle InstitutionAddress InstitutionalDepartmentName "
        "InstitutionalDepartmentTypeCodeSequence NameOfPhysiciansReadingStudy PhysiciansOfRecord RequestingService "
        "StudyDescription SeriesDescription AdditionalPatientHistory AdmissionID Allergies LastMenstrualDate "
        "MedicalAlerts Occupation PatientSize PatientState PatientWeight PregnancyStatus ReasonForVisit "
        "ServiceEpisodeDescription ServiceEpisodeID SmokingStatus DeviceDescription GantryID UDISequence "
        "AuthorObserverSequence CustodialOrganizationSequence ParticipantSequence RequestedProcedureID "
        "ReasonForTheRequestedProcedure IconImageSequence CertifiedTimestamp ContributionDateTime "
        "ContributionDescription DigitalSignaturesSequence OriginalAttributesSequence TimezoneOffsetFromUTC "
        "RequestAttributesSequence PerformingPhysicianName PerformedProcedureStepDescription SecondaryCaptureDeviceID "
        "ImageComments DerivationDescription DateOfSecondaryCapture TimeOfSecondaryCapture"
    ),
    "Z": (
        "PatientName PatientBirthDate PatientSex AccessionNumber ConsultingPhysicianName ReferringPhysicianName "
        "StudyDate StudyTime StudyID VerifyingObserverIdentificationCodeSequence"
    ),
    "D": (
        "ContentSequence ContextGroupVersion ContextGroupLocalVersion PersonName VerifyingObserverName "
        "VerifyingOrganization VerifyingObserverSequence VerificationDateTime Date DateTime Time ReferencedDateTime "
        "PersonIdentificationCodeSequence"
    ),
    "U": (
        "StudyInstanceUID SeriesInstanceUID SOPInstanceUID ReferencedSOPInstanceUID UID ObservationUID "
        "ReferencedFrameOfReferenceUID FrameOfReferenceUID SynchronizationFrameOfReferenceUID DeviceUID "
        "InstanceCreatorUID AcquisitionUID DigitalSignatureUID StorageMediaFileSetUID"
    ),
    "ZD": "PatientID ContentDate ContentTime",
    "XZ": "ReferencedStudySequence RequestedProcedureDescription AcquisitionDate AcquisitionTime BarcodeValue",
    "XD": "SeriesDate SeriesTime InstanceCreationDate ObservationDateTime ProtocolName",
    "XZD": (
        "InstanceCreationTime InstitutionName InstitutionCodeSequence StationName DeviceSerialNumber OperatorsName "
        "AcquisitionDateTime ReferencedPerformedProcedureStepSequence"
    ),
    "XZU": "ReferencedImageSequence SourceImageSequence",
}
TABLE = {keyword: actions for actions, keywords in BASIC_PROFILE.items() for keyword in keywords.split()}


def source(**headers: Any) -> Dataset:
    return keep_headers(photograph(0, **headers))


def objects(headers: Dataset | None = None, **changes: Any) -> list[Dataset]:
    headers, finding = headers or source(), replace(FINDING, **changes)
    return [build_report(headers, finding, MODEL), build_capture(headers, finding, PICTURE)]


def group_of(made: Dataset) -> Any:
    document = hd.sr.srread(io.BytesIO(encode_object(made)))
    assert isinstance(document.content, hd.sr.MeasurementReport)
    (group,) = document.content.get_image_measurement_groups()
    return group


def words(made: Dataset) -> list[str]:
    return [str(element.value) for element in made.iterall() if element.keyword == "TextValue"]


def keywords(made: Dataset) -> Iterator[str]:
    for element in made.iterall():
        yield element.keyword


@pytest.mark.parametrize("place", range(len(CLASSES)), ids=CLASSES)
def test_a_report_says_what_the_ledger_says(place: int) -> None:
    # Given a verdict of each class
    values = tuple(0.4 if number == place else 0.1 for number in range(7))
    finding = replace(FINDING, diagnosis=CLASSES[place], confidence=0.4, probabilities=values)

    # If its report is read back
    group = group_of(build_report(source(), finding, MODEL))

    # Then finding and numbers are the ledger's, to the last digit that a decimal string has
    assert (group.finding_type.value, group.finding_type.meaning) == DIAGNOSES[CLASSES[place]]
    assert group.finding_type.scheme_designator == "SCT"
    numbers = {one.name.value: one.value for one in group.get_measurements()}
    assert numbers.pop(codes.DCM.Probability.value) == pytest.approx(0.4, abs=1e-14)
    assert numbers.pop("MALIGNANT") == pytest.approx(0.7, abs=1e-14)
    assert [numbers.pop(f"P_{name}") for name in CLASSES] == pytest.approx(values, abs=1e-14)
    assert numbers == {}
    assert {one.unit for one in group.get_measurements()} == {codes.UCUM.NoUnits}
    evaluations = {one.name.value: one.value.value for one in group.get_qualitative_evaluations()}
    assert evaluations == {
        "CLASS": CLASSES[place],
        "PRIORITISED": codes.SCT.Yes.value,
        "REFERRED": codes.SCT.Yes.value,
        "REFER_REASON": "low_confidence",
    }


def test_every_class_has_a_code_of_its_own() -> None:
    assert set(DIAGNOSES) == set(CLASSES) == set(CLASS_NAMES)
    assert len(set(DIAGNOSES.values())) == len(CLASSES)


def test_what_is_not_referred_and_scores_low_is_said_to_be_so() -> None:
    group = group_of(
        build_report(source(), replace(FINDING, referred=False, refer_reason=None, malignant_score=0.1), MODEL)
    )

    evaluations = {one.name.value: one.value.value for one in group.get_qualitative_evaluations()}
    assert evaluations == {"CLASS": "mel", "PRIORITISED": codes.SCT.No.value, "REFERRED": codes.SCT.No.value}


def test_a_model_without_an_operating_point_says_nothing_of_priority() -> None:
    made = build_report(source(), FINDING, replace(MODEL, metrics={}))

    evaluations = {one.name.value for one in group_of(made).get_qualitative_evaluations()}
    assert "PRIORITISED" not in evaluations
    assert not [text for text in words(made) if "operating point" in text]


def test_a_report_names_the_algorithm_and_its_source() -> None:
    made = build_report(source(), FINDING, MODEL)
    group = group_of(made)

    assert [(one.referenced_sop_instance_uid, one.referenced_frame_numbers) for one in group.source_images] == [
        ("1.2.3.1.9.1", None)
    ]
    texts = words(made)
    assert "lesion-screen soft attention" in texts
    assert MODEL.digest[:12] in texts
    assert f"model digest (sha256 of its manifest): {MODEL.digest}" in texts
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == ("1.2.3.1", "1.2.3.1.9")
    assert instance.ReferencedSOPInstanceUID == "1.2.3.1.9.1"


def test_a_frame_is_referred_to_by_its_number() -> None:
    report, capture = objects(source(NumberOfFrames=3), frame=2)

    (image,) = group_of(report).source_images
    assert image.referenced_frame_numbers == [2]
    assert capture.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert (report.InstanceNumber, capture.InstanceNumber) == (2, 2)


def test_every_object_says_that_it_is_unverified_and_not_for_diagnosis() -> None:
    report, capture = objects()

    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    # In words that any viewer shows, whatever it makes of codes
    assert any("Not a medical device and not for diagnosis" in text for text in words(report))
    assert "Not a medical device and not for diagnosis" in capture.ImageComments
    assert {one.SeriesDescription for one in (report, capture)} == {"lesion-screen: unverified, not for diagnosis"}


def test_an_object_lies_beside_its_source() -> None:
    headers = source()

    for made in objects(headers):
        for keyword in (
            "PatientName",
            "PatientID",
            "IssuerOfPatientID",
            "PatientBirthDate",
            "PatientSex",
            "PatientAge",
        ):
            assert made[keyword].value == headers[keyword].value, keyword
        for keyword in ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
            assert made[keyword].value == headers[keyword].value, keyword
        found = dcmread(io.BytesIO(encode_object(made)))
        # Whatever the source's character set was
        assert str(found.PatientName).endswith("^Änne")
        assert found.SeriesInstanceUID != headers.SeriesInstanceUID


def test_a_source_without_headers_gets_a_report_all_the_same() -> None:
    bare = Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.1.9.1"
    bare.StudyInstanceUID, bare.SeriesInstanceUID = "1.2.3.1", "1.2.3.1.9"

    for made in objects(keep_headers(bare)):
        found = dcmread(io.BytesIO(encode_object(made)))
        assert found["PatientName"].is_empty
        assert found["StudyDate"].is_empty


def test_the_same_verdict_is_the_same_object_to_the_byte() -> None:
    first, second = ([encode_object(made) for made in objects()] for _ in range(2))

    assert first == second


@pytest.mark.parametrize(
    "change",
    [
        {"image_digest": "e" * 64},
        {"input_digest": "e" * 64},
        {"model_digest": "e" * 64},
        {"instance_uid": "1.2.3.1.9.2"},
        {"frame": 1},
    ],
    ids=lambda change: str(*change),
)
def test_another_verdict_is_another_object(change: dict[str, Any]) -> None:
    before, after = objects(), objects(**change)

    uids = [made.SOPInstanceUID for made in (*before, *after)]
    assert len(set(uids)) == 4
    assert all(UID(uid).is_valid for uid in uids)


def test_reports_of_one_study_share_a_series_and_those_of_two_models_do_not() -> None:
    changes: list[dict[str, Any]] = [{}, {"image_digest": "e" * 64}, {"model_digest": "e" * 64}]

    first, second, other = (
        build_report(source(), replace(FINDING, **change), MODEL).SeriesInstanceUID for change in changes
    )

    assert first == second != other


def test_identifiers_depend_on_where_one_part_ends_and_the_next_begins() -> None:
    assert derive_uid("ab", "c") != derive_uid("a", "bc")
    assert len(derive_uid("a")) <= 64
    assert UID(derive_uid("a")).is_valid
    assert replace_uid("1.2.3", KEY) == replace_uid("1.2.3", KEY) != replace_uid("1.2.3", bytes(32))


@pytest.mark.parametrize(
    ("offset", "expected"),
    [("+0200", "20231115001320"), ("-0130", "20231114204320"), (None, "20231114221320"), ("+9999", "20231114221320")],
)
def test_dates_are_the_verdict_s_in_the_zone_of_the_source(offset: str | None, expected: str) -> None:
    headers = source()
    if offset is not None:
        headers.TimezoneOffsetFromUTC = offset

    for made in objects(headers):
        assert f"{made.ContentDate}{made.ContentTime}".startswith(expected)
        assert made.get("TimezoneOffsetFromUTC") == offset


def test_an_overlay_says_what_it_shows_and_of_what() -> None:
    _, made = objects()

    found = dcmread(io.BytesIO(encode_object(made)))
    assert (found.Rows, found.Columns, found.PhotometricInterpretation) == (31, 33, "RGB")
    assert found.pixel_array.tobytes() == PICTURE.pixels
    assert found.ImageType == ["DERIVED", "SECONDARY"]
    assert "evidence" in found.DerivationDescription
    (reference,) = found.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == "1.2.3.1.9.1"
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


@pytest.mark.parametrize(("stated", "expected"), [("NO", "NO"), ("no ", "NO"), ("YES", "YES"), (None, "YES")])
def test_an_overlay_has_text_burned_in_unless_the_source_says_that_it_has_none(
    stated: str | None, expected: str
) -> None:
    headers = source()
    del headers.BurnedInAnnotation
    with say_nothing():
        if stated is not None:
            headers.BurnedInAnnotation = stated
        made = objects(headers)[1]

    assert made.BurnedInAnnotation == expected


def test_headers_that_a_report_does_not_need_are_not_kept() -> None:
    kept = source()

    assert "OtherPatientNames" not in kept
    assert "InstitutionName" not in kept
    assert not [element for element in kept if element.tag.is_private]


def test_the_canary_is_in_what_names_the_patient_and_nowhere_when_that_is_taken_out() -> None:
    for made in objects():
        assert is_in(encode_object(made))
        left = encode_object(deidentify(made, KEY))
        assert not is_in(left)
        for value in (b"19500102", b"20240301", b"1.2.3.1", b"074Y", b"2023111"):
            assert value not in left, value


def test_every_attribute_is_known_to_the_de_identification() -> None:
    # Given all attributes of everything that is written
    written = {
        keyword
        for made in objects(source(NumberOfFrames=2, TimezoneOffsetFromUTC="+0100"), frame=1)
        for keyword in keywords(made)
    }

    # Then each is either on the list of what stays or on that of what changes, and none on both
    assert written <= set(KEPT) | set(ACTIONS)
    assert not set(KEPT) & set(ACTIONS)


def test_what_is_done_with_an_attribute_is_what_the_profile_says() -> None:
    # What the table does not let stay stays only as our own text, as an empty sequence, or with its references replaced
    assert {keyword for keyword in KEPT if keyword in TABLE} == {
        *("SeriesDescription", "DerivationDescription", "ImageComments", "ContentSequence"),
        *("ReferencedPerformedProcedureStepSequence", "SourceImageSequence"),
    }
    assert {keyword: action for keyword, action in ACTIONS.items() if action not in TABLE[keyword]} == {}


def test_an_attribute_that_nobody_thought_of_is_taken_out() -> None:
    (made, _) = objects()
    made.PatientAddress = "Zilpzalp-Kanarienvogel"
    made.ContentSequence[0].PatientAddress = "Zilpzalp-Kanarienvogel"
    made.add_new((0x0009, 0x1001), "LO", "Zilpzalp-Kanarienvogel")

    assert not is_in(encode_object(deidentify(made, KEY)))


def test_de_identified_objects_are_marked_and_belong_together() -> None:
    report, capture = (deidentify(made, KEY) for made in objects())
    before = objects()

    for made, was in zip((report, capture), before, strict=True):
        assert made.PatientIdentityRemoved == "YES"
        assert [item.CodeValue for item in made.DeidentificationMethodCodeSequence] == ["113100", "113104", "113105"]
        assert made.SOPInstanceUID != was.SOPInstanceUID
        assert UID(made.SOPInstanceUID).is_valid
    # In one study, of one patient, and about the same instance under its new identifier
    assert report.StudyInstanceUID == capture.StudyInstanceUID == replace_uid("1.2.3.1", KEY)
    assert report.PatientID == capture.PatientID
    renamed = replace_uid("1.2.3.1.9.1", KEY)
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == renamed
    assert group_of(report).source_images[0].referenced_sop_instance_uid == renamed
    assert SCHEME in {item.CodingSchemeDesignator for item in report.CodingSchemeIdentificationSequence}


def test_a_verdict_is_left_whole_when_the_patient_is_taken_out() -> None:
    before, after = (group_of(made) for made in (objects()[0], deidentify(objects()[0], KEY)))

    assert before.finding_type == after.finding_type
    told = [[(one.name.value, one.value) for one in group.get_measurements()] for group in (before, after)]
    assert told[0] == told[1]


def test_two_patients_stay_two_and_one_stays_one() -> None:
    first, same, other = (
        deidentify(build_report(source(PatientID=name), FINDING, MODEL), KEY).PatientID for name in ("A", "A", "B")
    )

    assert first == same != other


def test_the_key_is_made_once_and_is_the_owner_s(tmp_path: Path) -> None:
    home = tmp_path / "home"

    first, second = read_key(home), read_key(home)

    assert first == second
    assert len(first) == 32
    assert [path.name for path in home.iterdir()] == ["deidentify.key"]
    assert (home / "deidentify.key").stat().st_mode & 0o777 == 0o600
    assert read_key(tmp_path / "other") != first


@pytest.mark.parametrize("content", ["", "zz", "00" * 31])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "deidentify.key").write_text(content)

    with pytest.raises(UsageProblem, match="holds no key"):
        read_key(tmp_path)


def test_headers_that_do_not_say_what_they_are_of_are_refused() -> None:
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        with pytest.raises((ValueError, TypeError)):
            source(**{keyword: None})


def test_a_header_is_quoted_in_no_warning_and_no_log_line(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    # Given headers that break the rules of their types
    with say_nothing():
        headers = source(
            PatientID="Zilpzalp-Kanarienvogel" * 5, StudyDate="Zilpzalp-Kanarienvogel", PatientSex="Zilpzalp"
        )
        made = objects(headers)

        # If objects are made of them and written
        data = [encode_object(one) for one in made]

    # Then nothing was said
    assert all(is_in(one) for one in data)
    assert caplog.text == ""
    assert not list(recwarn)


def test_the_documentation_has_the_codes_that_are_written() -> None:
    document = Path(producer.structured.__file__).with_name("REPORTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\w ]+) \|", document, flags=re.MULTILINE)

    assert {name: (code, meaning) for name, code, meaning in rows} == DIAGNOSES
    written = {one.name.value for one in group_of(objects()[0]).get_qualitative_evaluations()} | {
        "MALIGNANT",
        "P_akiec",
    }
    assert [code for code in written if f"`{code}`" not in document] == []


@pytest.mark.parametrize("value", [[5], [1.5], [{}], [True], [["x"]], ["\udc80"], [{"Alphabetic": 5}]], ids=str)
def test_headers_that_no_object_could_hold_are_refused_where_they_are_read(value: list[Any]) -> None:
    # Given the metadata that a PACS tells, with one value of a wrong kind
    metadata = photograph(0).to_json_dict()
    outcomes = []
    for keyword in (*PATIENT_AND_STUDY, "InstanceNumber", "TimezoneOffsetFromUTC"):
        tag = f"{tag_for_keyword(keyword):08X}"
        told = metadata | {tag: {"vr": dictionary_VR(keyword), "Value": value}}

        # If it is read
        with say_nothing():
            try:
                headers = keep_headers(Dataset.from_json(told))
            except Exception:  # noqa: BLE001 - any of them is a refusal
                outcomes.append("refused")
                continue

            # Then it is refused, or objects can be made of it
            for made in objects(headers):
                encode_object(made)
                encode_object(deidentify(made, KEY))
            outcomes.append("made")

    assert "refused" in outcomes
