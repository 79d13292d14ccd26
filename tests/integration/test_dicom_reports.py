"""Reports on a batch as other programs find them: in files, in a real PACS, and by independent checkers."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom as hd
import pytest
from click.testing import CliRunner, Result
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from sqlalchemy import text

from db.instances import count_instances, iter_instances
from db.tables import CLASSES
from producer.archive import Walk, open_archive
from producer.cli import cli
from producer.pacs import PacsListing
from producer.terms import DIAGNOSES
from tests.reported import RECORDED_AT, ReportedBatch, encode, judge, photograph
from tests.security.canary import files_below, is_in, places

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.orthanc import Orthanc

SR, CAPTURE = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture
def reported(sqlite_ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReportedBatch:
    """Give an archive that is empty so far, in the home that the commands work in."""
    home = tmp_path / "home"
    monkeypatch.setenv("LESION_SCREEN_HOME", str(home))
    return ReportedBatch(engine=sqlite_ledger, root=tmp_path / "archive", store=home / "store")


def call(*arguments: object) -> Result:
    """Call the program; nothing that it says names a patient."""
    result = CliRunner().invoke(cli, [str(one) for one in ("dicom", *arguments)])
    assert not is_in(result.output)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def of_class(folder: Path, sop_class: str) -> list[Dataset]:
    found = [dcmread(path) for path in sorted(folder.iterdir())]
    return [one for one in found if one.SOPClassUID == sop_class]


def group_of(path: Path | io.BytesIO) -> Any:
    content = hd.sr.srread(path).content
    assert isinstance(content, hd.sr.MeasurementReport)
    (group,) = content.get_image_measurement_groups()
    return group


def errors(told: str) -> list[str]:
    return [line for line in told.splitlines() if re.match(r"\s*(E:|F:|Error|Failed|dsrdump: |Abort)", line)]


def test_reports_are_what_the_ledger_says_and_what_others_can_read(reported: ReportedBatch, tmp_path: Path) -> None:
    # Given seven objects, one diagnosed as each class
    batch = reported.screen(*(photograph(number) for number in range(7)))

    # If their reports are written
    result = call(batch, "--out", tmp_path / "out")

    # Then highdicom reads the ledger's verdict out of each, about the instance that it is about
    assert result.exit_code == 0, result.output
    assert "7 reports" in result.output
    paths = {group_of(path).source_images[0].referenced_sop_instance_uid: path for path in (tmp_path / "out").iterdir()}
    findings = list(iter_instances(reported.engine, batch))
    assert sorted(paths) == sorted(one.instance_uid for one in findings)
    assert {one.diagnosis for one in findings} == set(CLASSES)
    for finding in findings:
        group = group_of(paths[finding.instance_uid])
        assert group.finding_type.value == DIAGNOSES[finding.diagnosis][0]
        numbers = {one.name.value: one.value for one in group.get_measurements()}
        expected = dict(zip((f"P_{name}" for name in CLASSES), finding.probabilities, strict=True))
        expected |= {"MALIGNANT": finding.malignant_score, codes.DCM.Probability.value: finding.confidence}
        assert numbers == pytest.approx(expected, abs=1e-14)
        answers = {one.name.value: one.value.meaning for one in group.get_qualitative_evaluations()}
        assert answers["REFERRED"] == ("Yes" if finding.referred else "No")
    # And so do two programs of other people
    for path in paths.values():
        assert errors(judge("dciodvfy", path)) == []
        assert errors(judge("dsrdump", path)) == []
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def test_the_checkers_would_find_something_wrong(reported: ReportedBatch, tmp_path: Path) -> None:
    # Given a report without its verification flag and its title
    call(reported.screen(photograph(0)), "--out", tmp_path / "out")
    (path,) = (tmp_path / "out").iterdir()
    made = dcmread(path)
    del made.VerificationFlag
    del made.ConceptNameCodeSequence
    made.save_as(path)

    assert errors(judge("dciodvfy", path)) != []
    assert errors(judge("dsrdump", path)) != []


def test_writing_twice_writes_the_same_bytes_and_leaves_what_is_there(reported: ReportedBatch, tmp_path: Path) -> None:
    # Given reports and overlays in one folder, and one file of it cut off
    batch = reported.screen(*(photograph(number) for number in range(3)), drawn=3)
    call(batch, "--out", tmp_path / "out", "--overlays")
    before = written(tmp_path / "out")
    cut, *whole = sorted((tmp_path / "out").iterdir())
    cut.write_bytes(before[cut.name][:100])
    numbers = {path: path.stat().st_ino for path in whole}

    # If they are written again, there and elsewhere
    call(batch, "--out", tmp_path / "out", "--overlays")
    call(batch, "--out", tmp_path / "other", "--overlays")

    # Then all are the same to the byte, and the files that were right have not been touched
    assert len(before) == 6
    assert written(tmp_path / "out") == written(tmp_path / "other") == before
    assert {path: path.stat().st_ino for path in whole} == numbers


def test_overlays_are_written_of_what_was_drawn_and_the_others_are_counted(
    reported: ReportedBatch, tmp_path: Path
) -> None:
    batch = reported.screen(*(photograph(number) for number in range(5)), drawn=2)

    result = call(batch, "--out", tmp_path / "out", "--overlays")

    assert "5 reports and 2 overlays" in result.output
    assert "3 instances have no overlay in the store" in result.output
    assert result.exit_code == 0
    captures = of_class(tmp_path / "out", CAPTURE)
    assert sorted(one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in captures) == [
        "1.2.3.1.9.1",
        "1.2.3.1.9.2",
    ]
    for made in captures:
        path = tmp_path / "out" / f"{made.SOPInstanceUID}.dcm"
        assert errors(judge("dciodvfy", path)) == []
        # The attention of the drawn ones runs from corner to corner over even grey
        pixels = made.pixel_array.astype(int)
        assert pixels.shape == (24, 32, 3)
        assert abs(pixels[2, 30] - 100).max() <= 6
        assert abs(pixels[2, 2] - 100).max() > 60
    assert len(of_class(tmp_path / "out", SR)) == 5


def test_each_frame_has_a_report_of_its_own(reported: ReportedBatch, tmp_path: Path) -> None:
    batch = reported.screen(photograph(0, frames=3), photograph(1))

    call(batch, "--out", tmp_path / "out")

    images = [group_of(path).source_images[0] for path in (tmp_path / "out").iterdir()]
    told = sorted((one.referenced_sop_instance_uid, one.referenced_frame_numbers or []) for one in images)
    assert told == [("1.2.3.1.9.1", [1]), ("1.2.3.1.9.1", [2]), ("1.2.3.1.9.1", [3]), ("1.2.3.1.9.2", [])]
    for path in (tmp_path / "out").iterdir():
        assert errors(judge("dciodvfy", path)) == []


def test_what_is_not_what_was_scored_gets_no_report(reported: ReportedBatch, tmp_path: Path) -> None:
    # Given five objects of which one is gone, one another one, one no object any more, and one a link
    batch = reported.screen(*(photograph(number) for number in range(5)))
    files = [reported.root / f"{photograph(number).SOPInstanceUID}.dcm" for number in range(5)]
    files[0].unlink()
    files[1].write_bytes(encode(photograph(1, PatientName="Other^Patient")))
    files[2].write_bytes(b"nothing")
    files[3].rename(tmp_path / "elsewhere.dcm")
    files[3].symlink_to(tmp_path / "elsewhere.dcm")

    result = call(batch, "--out", tmp_path / "out")

    assert result.exit_code == 1
    assert "1 reports" in result.output
    assert "2 instances whose object is not what was scored" in result.output
    assert "1 instances whose object is gone" in result.output
    assert "1 instances whose object cannot be read" in result.output
    assert len(written(tmp_path / "out")) == 1


def test_an_archive_that_is_away_is_not_taken_for_a_missing_file(reported: ReportedBatch, tmp_path: Path) -> None:
    batch = reported.screen(photograph(0))
    next(reported.root.iterdir()).unlink()

    result = call(batch, "--out", tmp_path / "out")

    assert result.exit_code == 3
    assert "check that it is mounted" in result.output


def test_de_identified_objects_hold_nothing_of_the_patient(reported: ReportedBatch, tmp_path: Path) -> None:
    # Given objects of two studies with overlays, whose every name is the canary
    batch = reported.screen(*(photograph(number) for number in range(4)), drawn=4)
    plain = call(batch, "--out", tmp_path / "plain", "--overlays")
    assert len(places(files_below(tmp_path / "plain"))) == 8

    # If they are written without the patient, twice
    result = call(batch, "--out", tmp_path / "out", "--overlays", "--deidentify")
    call(batch, "--out", tmp_path / "again", "--overlays", "--deidentify")

    # Then no byte names anybody, no original identifier or date is left, and everything is still sound
    assert "deidentify.key" in result.output
    assert "They name patients" in plain.output
    assert places(files_below(tmp_path / "out")) == []
    assert written(tmp_path / "out") == written(tmp_path / "again")
    assert len(written(tmp_path / "out")) == 8
    for name, data in written(tmp_path / "out").items():
        assert errors(judge("dciodvfy", tmp_path / "out" / name)) == []
        for original in (
            b"1.2.3.",
            b"19500102",
            b"20240301",
            b"20231114",
            b"074Y",
            "Änne".encode(),
            "Änne".encode("latin-1"),
        ):
            assert original not in data, original
    # Two studies stay two, and report and overlay of an instance stay together
    reports, captures = of_class(tmp_path / "out", SR), of_class(tmp_path / "out", CAPTURE)
    assert len({one.StudyInstanceUID for one in reports}) == 2
    about = {
        one.CurrentRequestedProcedureEvidenceSequence[0]
        .ReferencedSeriesSequence[0]
        .ReferencedSOPSequence[0]
        .ReferencedSOPInstanceUID
        for one in reports
    }
    assert about == {one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in captures}
    assert not set(written(tmp_path / "plain")) & set(written(tmp_path / "out"))


def test_a_picture_that_may_show_a_name_is_not_de_identified(reported: ReportedBatch, tmp_path: Path) -> None:
    stated = [photograph(0, BurnedInAnnotation="YES"), photograph(1, BurnedInAnnotation=None), photograph(2)]
    batch = reported.screen(*stated, drawn=3)

    result = call(batch, "--out", tmp_path / "out", "--overlays", "--deidentify")

    assert "2 overlays were left out" in result.output
    assert len(of_class(tmp_path / "out", CAPTURE)) == 1


def test_an_export_is_in_the_audit_trail_without_anybody_s_name(reported: ReportedBatch, tmp_path: Path) -> None:
    batch = reported.screen(photograph(0))

    result = call(batch, "--out", tmp_path / "out", "--deidentify")

    with reported.engine.connect() as connection:
        entry = connection.execute(text("SELECT * FROM audit ORDER BY id DESC LIMIT 1")).one()
    assert (entry.action, entry.subject, entry.detail) == ("export_batch", f"batch {batch}", "dicom deidentified files")
    assert f"Head of the audit trail: {entry.hash}" in result.output


def test_a_batch_without_dicom_objects_is_a_plain_sentence(reported: ReportedBatch, tmp_path: Path) -> None:
    batch = reported.screen(photograph(0))
    with reported.engine.begin() as connection:
        connection.execute(text("UPDATE item SET instance_uid = NULL"))

    result = call(batch, "--out", tmp_path / "out")

    assert result.exit_code == 2
    assert "has no DICOM object with a verdict" in result.output
    assert call(batch).exit_code == 2


def test_reports_go_into_a_pacs_once_and_come_back_as_they_were(
    reported: ReportedBatch, tmp_path: Path, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given objects in a PACS, screened there
    for name, value in orthanc.settings.items():
        monkeypatch.setenv(name, value)
    sources = [photograph(number) for number in range(6)]
    orthanc.store(encode(made) for made in sources)
    batch = reported.screen(*sources, source=orthanc.address(), drawn=6)
    before = orthanc.count()

    # If reports and overlays are sent, twice, and written to files as well
    first = call(batch, "--send", orthanc.address(), "--overlays", "--out", tmp_path / "out")
    after = orthanc.count()
    second = call(batch, "--send", orthanc.address(), "--overlays")

    # Then each is there once
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert "The PACS has 12 of them" in first.output
    assert "The PACS has 12 of them" in second.output
    assert (after - before, orthanc.count() - after) == (12, 0)
    # And what comes back is what was sent, beside its source: the headers came out of the PACS
    place = orthanc.place()
    for name, data in written(tmp_path / "out").items():
        made = dcmread(io.BytesIO(data))
        assert str(made.PatientName) == str(sources[0].PatientName)
        path = f"studies/{made.StudyInstanceUID}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"
        returned = dcmread(io.BytesIO(place.read(path, 10_000_000)))
        assert name == f"{returned.SOPInstanceUID}.dcm"
        assert returned == made
        assert returned.StudyInstanceUID in {one.StudyInstanceUID for one in sources}
    # And none of it is screened when the PACS, or the folder, is read again
    listing, walk = PacsListing(place), Walk(open_archive(tmp_path / "out"))
    assert (len(list(listing)), dict(listing.ignored)) == (6, {"SR": 6, "OT": 6})
    assert (list(walk), dict(walk.ignored)) == ([], {"ours": 12})


def test_reports_of_a_pacs_s_objects_and_of_files_are_the_same(
    reported: ReportedBatch, tmp_path: Path, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the same objects in a folder and in a PACS
    sources = [photograph(number) for number in range(10, 12)]
    call(reported.screen(*sources), "--out", tmp_path / "files")
    for name, value in orthanc.settings.items():
        monkeypatch.setenv(name, value)
    orthanc.store(encode(made) for made in sources)
    with reported.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET source = :s"), {"s": orthanc.address()})
        for made in sources:
            path = f"studies/{made.StudyInstanceUID}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"
            connection.execute(
                text("UPDATE item SET path = :p WHERE instance_uid = :u"), {"p": path, "u": made.SOPInstanceUID}
            )

    call(reported.batch, "--out", tmp_path / "pacs")

    assert len(written(tmp_path / "files")) == 2
    assert written(tmp_path / "pacs") == written(tmp_path / "files")


@contextmanager
def answering(answer: Callable[[int, bytes], tuple[int, Any]]) -> Iterator[str]:
    """Run a server that answers each request to store as it is told; yields its address."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            status, told = answer(len(asked), asked[-1])
            body = b"" if told is None else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sent(body: bytes) -> list[str]:
    parts = body.split(b"Content-Type: application/dicom\r\n\r\n")[1:]
    return [str(dcmread(io.BytesIO(part)).SOPInstanceUID) for part in parts]


def told(there: list[str], failed: dict[str, int]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if there:
        answer["00081199"] = {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in there]}
    if failed:
        items = [
            {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [why]}}
            for uid, why in failed.items()
        ]
        answer["00081198"] = {"vr": "SQ", "Value": items}
    return answer


def send(reported: ReportedBatch, monkeypatch: pytest.MonkeyPatch, address: str, objects: int = 3) -> Result:
    monkeypatch.setenv("WORKER_DICOMWEB_SERVER", f"http://{address}")
    batch = reported.batch or reported.screen(*(photograph(number) for number in range(objects)))
    return call(batch, "--send", f"dicomweb://{address}/dicom-web")


def test_what_a_pacs_does_not_take_is_counted_and_what_it_has_is_sent(
    reported: ReportedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a PACS that takes one object, has one already, and has no room for the third
    def answer(_number: int, body: bytes) -> tuple[int, Any]:
        first, second, third = sent(body)
        return 202, told([first], {second: 0x0111, third: 0xA700})

    with answering(answer) as address:
        result = send(reported, monkeypatch, address)

    assert result.exit_code == 1
    assert "The PACS did not take 1 objects (Failure Reason A700H)" in result.output
    assert "The PACS has 2 of them" in result.output


def test_an_object_that_the_answer_does_not_name_was_not_taken(
    reported: ReportedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(lambda _number, body: (200, told(sent(body)[:2], {}))) as address:
        result = send(reported, monkeypatch, address)

    assert result.exit_code == 1
    assert "did not take 1 objects (Failure Reason 0110H)" in result.output


def test_a_pacs_in_trouble_is_asked_again(reported: ReportedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []

    def answer(number: int, body: bytes) -> tuple[int, Any]:
        bodies.append(body)
        return (503, None) if number < 3 else (200, told(sent(body), {}))

    with answering(answer) as address:
        result = send(reported, monkeypatch, address)

    assert result.exit_code == 0, result.output
    assert len(bodies) == 3
    assert len(set(bodies)) == 1


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [(401, 3, "does not let us store"), (302, 3, "does not let us store"), (409, 1, "did not take 3 objects")],
)
def test_a_pacs_that_refuses_is_a_plain_sentence(
    reported: ReportedBatch, monkeypatch: pytest.MonkeyPatch, status: int, code: int, sentence: str
) -> None:
    with answering(lambda _number, _body: (status, None)) as address:
        result = send(reported, monkeypatch, address)

    assert result.exit_code == code
    assert sentence in result.output
    assert address not in result.output


def test_a_pacs_that_is_away_is_a_plain_sentence(reported: ReportedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.stow.pause", lambda _attempt: 0.0)
    with answering(lambda _number, _body: (200, None)) as address:
        pass

    result = send(reported, monkeypatch, address)

    assert result.exit_code == 3
    assert "does not answer" in result.output
    assert address not in result.output


def test_many_objects_are_sent_in_several_requests(reported: ReportedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.returning._OBJECTS_A_REQUEST", 2)
    sizes: list[int] = []

    def answer(_number: int, body: bytes) -> tuple[int, Any]:
        sizes.append(len(sent(body)))
        return 200, told(sent(body), {})

    with answering(answer) as address:
        result = send(reported, monkeypatch, address, objects=5)

    assert "The PACS has 5 of them" in result.output
    assert sizes == [2, 2, 1]


def test_a_broken_picture_costs_its_own_overlay_alone(reported: ReportedBatch, tmp_path: Path) -> None:
    batch = reported.screen(*(photograph(number) for number in range(3)), drawn=3)
    thumbnail = sorted((reported.store / "thumbs").iterdir())[1]
    thumbnail.write_bytes(thumbnail.read_bytes()[:100])

    result = call(batch, "--out", tmp_path / "out", "--overlays")

    assert "3 reports and 2 overlays" in result.output
    assert "1 instances have no overlay in the store" in result.output


def test_instances_are_streamed_page_by_page_and_without_what_is_none(ledger: Engine, tmp_path: Path) -> None:
    # Given five objects, of which one is no instance and one has no verdict any more
    reported = ReportedBatch(engine=ledger, root=tmp_path / "archive", store=tmp_path / "store")
    batch = reported.screen(*(photograph(number) for number in range(5)))
    with ledger.begin() as connection:
        connection.execute(text("UPDATE item SET instance_uid = NULL WHERE instance_uid = '1.2.3.1.9.2'"))
        connection.execute(text("UPDATE item SET state = 'open' WHERE instance_uid = '1.2.3.2.9.3'"))

    # Then the others come in their order, however many are read at once
    for page in (1, 2, 3, 100):
        found = list(iter_instances(ledger, batch, page))
        assert [one.instance_uid for one in found] == ["1.2.3.1.9.1", "1.2.3.2.9.4", "1.2.3.3.9.5"]
        assert {one.created_at for one in found} == {RECORDED_AT}
    assert count_instances(ledger, batch) == 3


def test_without_the_extra_it_is_said_what_to_install(
    reported: ReportedBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = reported.screen(photograph(0))
    monkeypatch.setattr("worker.dicomweb.find_spec", lambda _name: None)

    result = call(batch, "--out", tmp_path / "out")

    assert result.exit_code == 2
    assert (
        result.output == "Error: DICOM objects need the extra dicom; install it: pip install 'lesion-screen[dicom]'.\n"
    )
    assert not (tmp_path / "out").exists()
