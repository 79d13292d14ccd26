"""A PACS as an archive: a real Orthanc, and a server that answers whatever a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner
from pydicom.datadict import dictionary_VR
from sqlalchemy import text

from model.errors import ArchiveUnavailable, RejectedImage
from model.images import read_image_bytes
from producer.cli import cli
from producer.errors import ArchiveProblem, ServiceProblem
from producer.pacs import PacsListing, insist_on_studies
from tests.dicoms import PHOTOGRAPH, STRUCTURED_REPORT, make_headers, write_dicom
from tests.orthanc import PASSWORD, Orthanc, skin_object
from worker.dicomweb import DicomWebPlace
from worker.doorbell import Doorbell
from worker.feeder import feed_once
from worker.settings import WorkerSettings
from worker.wado import Access

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.archive import Archive

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
#: SOP class and rows of pixels.
PHOTOGRAPHS = {"00080016": PHOTOGRAPH, "00280010": 16}


@pytest.fixture
def ledger(sqlite_ledger: Engine) -> Engine:
    """Take SQLite alone: where bytes come from does not depend on the database."""
    return sqlite_ledger


def path_of(study: int, series: int = 0, instance: int = 0) -> str:
    return f"studies/2.25.{study}/series/2.25.{study}.{series}/instances/2.25.{study}.{series}.{instance}"


def refusal(place: DicomWebPlace, relative: str, most: int = 10_000) -> str:
    with pytest.raises(RejectedImage) as refused:
        read_image_bytes(place, relative, max_bytes=most)
    return refused.value.reason.value


def test_instances_are_read_as_they_are_stored_within_the_limits_of_files(orthanc: Orthanc) -> None:
    # Given two instances, one of them compressed
    plain, squeezed = skin_object(1, brightness=7), skin_object(2, brightness=90, syntax="jpeg")
    orthanc.store([plain, squeezed])
    place = orthanc.place()

    # Then each is read as it is, whatever its transfer syntax
    assert read_image_bytes(place, path_of(1), max_bytes=10_000) == plain
    assert read_image_bytes(place, path_of(2), max_bytes=10_000) == squeezed
    assert place.read(path_of(1), 5) == plain[:5]
    with place.open(path_of(1)) as file:
        assert file.seek(128) == 128
        assert file.read(4) == b"DICM"
    # Or refused for the reason a file would be
    assert refusal(place, path_of(1), len(plain) - 1) == "too_large_file"
    assert refusal(place, path_of(3)) == "missing_image"
    for unsafe in ("../x", path_of(1) + "/../x", "studies/2.25.1", path_of(1) + "?x=1", f"{path_of(1)}/frames/1", ""):
        assert refusal(place, unsafe) in {"unsafe_path", "unreadable"}
    for unsafe in ("studies/*/series/*/instances/*", path_of(1).replace("2.25", "2..25"), "studies/2.25.1"):
        with pytest.raises(OSError, match="not a path of an instance"):
            place.read(unsafe, 10)

    # If nobody is let in, the path is another one, or the server is gone, then no image pays for it
    stranger = DicomWebPlace.at(orthanc.address(), Access(server=orthanc.endpoint))
    elsewhere = DicomWebPlace.at(orthanc.address().replace("dicom-web", "other"), orthanc.place().server.access)
    for away in (stranger, elsewhere):
        with pytest.raises(ArchiveUnavailable):
            read_image_bytes(away, path_of(1), max_bytes=10_000)
    with pytest.raises(ServiceProblem, match="The PACS does not answer, or refuses us"):
        insist_on_studies(stranger)
    with pytest.raises(ArchiveProblem, match="no DICOMweb under this path"):
        insist_on_studies(elsewhere)
    orthanc.kill()
    with pytest.raises(ArchiveUnavailable):
        read_image_bytes(place, path_of(1), max_bytes=10_000)
    with pytest.raises(ServiceProblem, match="The PACS does not answer"):
        list(PacsListing(place))


@pytest.mark.parametrize("page_rows", [1, 3, 200])
def test_a_pacs_is_listed_whole_whatever_its_pages(orthanc: Orthanc, page_rows: int) -> None:
    # Given studies of two modalities, with several series, instances and frames, and with a report in one of them
    stored = {(s, r, i): skin_object(s, r, i, brightness=s) for s in range(1, 8) for r in range(2) for i in range(2)}
    orthanc.store(stored.values())
    orthanc.store([skin_object(8, Modality="CR"), skin_object(9, StudyDate="20230102"), skin_object(1, 5, frames=3)])
    report = make_headers(sop_class=STRUCTURED_REPORT, Modality="XC", StudyDate="20240301", StudyInstanceUID="2.25.2")
    orthanc.store([write_dicom(report)])

    # If it is listed with any size of pages
    place = orthanc.place("StudyDate=20240101-20241231&Modality=XC")
    listing = PacsListing(place, page_rows)
    found = {one.path: one.read() for one in listing}

    # Then every image that was asked for is there once, with what its headers say
    assert sorted(filter(None, found)) == sorted([*(path_of(*key) for key in stored), path_of(1, 5)])
    assert dict(listing.ignored) == {"XC": 1}
    multiple, single = found[path_of(1, 5)], found[path_of(3, 1, 1)]
    assert (multiple.frames, single.frames) == (3, 1)
    assert (single.study_uid, single.series_uid, single.instance_uid) == ("2.25.3", "2.25.3.1", "2.25.3.1.1")
    # The site is in a sequence, which QIDO-RS of this server leaves out
    assert (single.age, single.sex, single.localization) == (54.0, "female", "back")
    # And what narrows it down narrows it down
    narrower = {
        "StudyInstanceUID=2.25.3": 4,
        "SeriesInstanceUID=2.25.3.1": 2,
        "Modality=CR": 1,
        "StudyDate=20230102": 1,
        "SOPClassUID=1.2.840.10008.5.1.4.1.1.77.1.4&StudyInstanceUID=2.25.1": 5,
    }
    for query, count in narrower.items():
        assert len(list(PacsListing(orthanc.place(query), page_rows))) == count, query
    with pytest.raises(ArchiveProblem, match="no study that this address asks for"):
        insist_on_studies(orthanc.place("Modality=US"))


def test_a_pacs_is_submitted_as_a_folder_is_and_found_again(
    archive: Archive, orthanc: Orthanc, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given photographs in a PACS, one of several frames
    monkeypatch.setenv("DB_URL", archive.engine.url.render_as_string(hide_password=False))
    for name, value in orthanc.settings.items():
        monkeypatch.setenv(name, value)
    archive.activate_model()
    orthanc.store([skin_object(1), skin_object(2, frames=2)])

    # If they are submitted twice, what is asked for written in another way
    address = orthanc.address("StudyDate=20240101-&Modality=XC")
    first = CliRunner().invoke(cli, ["submit", address])
    second = CliRunner().invoke(cli, ["submit", orthanc.address("Modality=XC&StudyDate=20240101-")])

    # Then there is one batch, whose items say what they are
    batch = json.loads(first.stdout)["batch"]
    assert json.loads(second.stdout)["batch"] == batch
    query = text(
        "SELECT path, frame, size, image_id, patient_ref, study_uid, series_uid, instance_uid, age, sex, localization"
        " FROM item ORDER BY id"
    )
    with archive.engine.connect() as connection:
        items = connection.execute(query).all()
        source, name = connection.execute(text("SELECT source, name FROM batch")).one()
    said = (54.0, "female", "back")
    many = (path_of(2), "P2", "2.25.2", "2.25.2.0", "2.25.2.0.0", *said)
    assert [tuple(one) for one in items] == [
        (path_of(1), None, None, "2.25.1.0.0", "P1", "2.25.1", "2.25.1.0", "2.25.1.0.0", *said),
        (many[0], 1, None, "2.25.2.0.0#1", *many[1:]),
        (many[0], 2, None, "2.25.2.0.0#2", *many[1:]),
    ]
    assert (source, name) == (orthanc.address("Modality=XC&StudyDate=20240101-"), "127.0.0.1")

    # And a table says more than the headers do
    table = archive.root.with_suffix(".csv")
    table.write_text("isic_id,age_approx\n2.25.1.0.0,33\n", encoding="utf-8")
    third = CliRunner().invoke(cli, ["submit", address, "--metadata", str(table)])
    ages = text("SELECT age, sex FROM item WHERE batch_id = :b ORDER BY id")
    with archive.engine.connect() as connection:
        found = connection.execute(ages, {"b": json.loads(third.stdout)["batch"]}).all()
    assert [tuple(one) for one in found] == [(33.0, "female"), (54.0, "female"), (54.0, "female")]

    # Outside the window no chunk of it is begun
    now = datetime.now(UTC)
    closed = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    with Doorbell(redis_url) as doorbell:
        assert feed_once(archive.engine, doorbell, WorkerSettings(window=closed)) == 0
        assert feed_once(archive.engine, doorbell, WorkerSettings()) == 2

    # And doctor looks whether it answers
    assert grade_of_archives() == "good"
    orthanc.kill()
    assert grade_of_archives() == "odd"
    for command in (["submit", address], ["verify", str(batch), "--rehash"]):
        pretend_screened(archive, batch)
        away = CliRunner().invoke(cli, command)
        assert (away.exit_code, "The PACS does not answer" in away.output) == (3, True)
        assert PASSWORD not in away.output


def grade_of_archives() -> str:
    said = CliRunner().invoke(cli, ["doctor", "--quick", "--json"])
    return next(str(one["grade"]) for one in json.loads(said.stdout)["findings"] if one["part"] == "archives")


def pretend_screened(archive: Archive, batch: int) -> None:
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE item SET image_digest = 'd' WHERE batch_id = :b"), {"b": batch})


Handling = Callable[[str, dict[str, list[str]]], tuple[int, dict[str, str], bytes]]


@dataclass(slots=True)
class Scripted:
    """A DICOMweb server that says what a test tells it to."""

    answer: Handling
    asked: list[str] = field(default_factory=list)
    place: DicomWebPlace = field(init=False)


@contextmanager
def scripted(answer: Handling, *, silence: float = 5, patience: float = 20) -> Iterator[Scripted]:
    made = Scripted(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        #: Of a connection that is kept open; seconds.
        timeout = 10

        def do_GET(self) -> None:
            made.asked.append(self.path)
            url = urlsplit(self.path)
            status, headers, body = made.answer(url.path.removeprefix("/x/"), parse_qs(url.query))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        origin = f"127.0.0.1:{server.server_port}"
        made.place = DicomWebPlace.at(
            f"dicomweb://{origin}/x", Access(server=f"http://{origin}", silence=silence, patience=patience)
        )
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def rows(key: str, *names: str, **more: Any) -> bytes:
    """Write rows as DICOM JSON, each with a name under one tag."""
    other = {tag: {"vr": dictionary_VR(tag), "Value": [value]} for tag, value in more.items()}
    return json.dumps([{key: {"vr": "UI", "Value": [name]}, **other} for name in names]).encode()


def multipart(data: bytes, kind: str = 'multipart/related; boundary="e"') -> tuple[int, dict[str, str], bytes]:
    body = b"--e\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--e--\r\n"
    return 200, {"Content-Type": kind}, body


UP = (200, {"Content-Type": "application/dicom+json"}, rows(STUDY, "2.25.1"))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b""), "missing_image"),
        ((410, {}, b""), "missing_image"),
        ((403, {}, b"MUSTERMANN"), "unreadable"),
        ((406, {}, b""), "unreadable"),
        ((302, {"Location": "http://127.0.0.1:9/x"}, b""), "unreadable"),
        ((200, {"Content-Type": "application/dicom", "Content-Encoding": "gzip"}, b"x"), "unreadable"),
        # This one alone does not come: it is not waited for for ever, and may be asked for again
        ((500, {}, b"MUSTERMANN"), "not_delivered"),
        ((503, {"Retry-After": "0"}, b""), "not_delivered"),
        ((429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""), "not_delivered"),
        ((503, {"Retry-After": "3600"}, b""), "not_delivered"),
        ((200, {"Content-Type": "text/html"}, b"<html>MUSTERMANN"), "not_delivered"),
        ((200, {"Content-Type": "multipart/related"}, b"--e"), "not_delivered"),
        # The server hangs up before its end
        ((200, {"Content-Type": "application/dicom", "Content-Length": "99", "Connection": "close"}, b"DICM"), None),
        # Another instance than the one that was asked for
        (multipart(skin_object(2)), "not_delivered"),
        (multipart(b"x" * 10_001), "too_large_file"),
        (multipart(b""), "empty_file"),
    ],
)
def test_what_a_pacs_refuses_is_one_images_fault_only_while_it_answers(
    answer: tuple[int, dict[str, str], bytes], reason: str | None
) -> None:
    def handle(path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        return UP if path == "studies" else answer

    with scripted(handle) as server:
        assert refusal(server.place, path_of(1)) == (reason or "not_delivered")
        # If the server answers nothing else either, nobody pays
        server.answer = lambda _path, _query: (answer[0], answer[1], answer[2])
        if not answer[1].get("Content-Type", "").startswith("multipart/related; "):
            with pytest.raises(ArchiveUnavailable) as away:
                read_image_bytes(server.place, path_of(1), max_bytes=10_000)
            assert "MUSTERMANN" not in str(away.value)
            assert "2.25" not in str(away.value)


def test_a_server_that_asks_for_patience_is_asked_again() -> None:
    # Given one that is busy twice
    data, busy = skin_object(1), iter([(503, {"Retry-After": "1"}, b""), (429, {}, b"")])

    def handle(path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        return UP if path == "studies" else next(busy, multipart(data))

    with scripted(handle) as server:
        assert server.place.read(path_of(1), 10_000) == data
        # And whether it answers at all was asked in between
        kinds = ["probe" if "limit=1" in path else "instance" for path in server.asked]
        assert kinds == ["instance", "probe", "instance", "probe", "instance"]


def test_an_object_of_many_frames_is_fetched_once_for_those_that_follow_one_another() -> None:
    data = skin_object(1, frames=3)
    with scripted(lambda _path, _query: multipart(data)) as server:
        assert [server.place.read(path_of(1), 10_000) for _ in range(3)] == [data] * 3
        assert len(server.asked) == 1


def test_a_body_without_end_takes_neither_memory_nor_time() -> None:
    # Given an answer of a gigabyte, and one that comes a byte at a time
    gate = threading.Event()

    def handle(path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        if path == "studies":
            return UP
        if path.endswith(".1"):
            gate.wait(60)
        return 200, {"Content-Type": "application/dicom", "Content-Length": str(1 << 30)}, b"x" * 200_000

    with scripted(handle, silence=0.3, patience=1) as server:
        # Then no more of the first one is read than may be, and the second one is given up
        assert refusal(server.place, path_of(1), 50_000) == "too_large_file"
        assert refusal(server.place, path_of(1, 0, 1)) == "not_delivered"
        gate.set()


def test_what_hangs_is_given_little_time_after_it_has_hung_and_none_in_the_end() -> None:
    gate = threading.Event()

    def handle(path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        if path == "studies":
            return UP
        if "/2.25.1/" in f"/{path}":
            gate.wait(60)
        return multipart(skin_object(2))

    with scripted(handle, silence=0.3) as server:
        # Given a study of which everything hangs
        for number in range(6):
            assert refusal(server.place, path_of(1, 0, number)) == "not_delivered"

        # Then the first was asked for twice, two more once, and the others not at all
        asked = [path.rpartition("/")[2] for path in server.asked if "instances" in path]
        assert asked == ["2.25.1.0.0", "2.25.1.0.0", "2.25.1.0.1", "2.25.1.0.2"]
        # And the other studies are read as before
        assert server.place.read(path_of(2), 10_000)
        gate.set()


def paged(names: list[str], query: dict[str, list[str]], *, cap: int = 99, ignored: str = "") -> list[str]:
    offset = 0 if "offset" in ignored else int(query["offset"][0])
    limit = 99 if "limit" in ignored else int(query["limit"][0])
    return names[offset : offset + min(limit, cap)]


def listing_of(
    choose: Callable[[list[str], dict[str, list[str]]], list[str]], studies: int = 10
) -> tuple[set[str | None], list[str]]:
    """List a server that pages as told; one series and instance a study."""
    names = [f"2.25.{number}" for number in range(1, studies + 1)]

    def handle(path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        parts = path.split("/")
        if path == "studies":
            return 200, {}, rows(STUDY, *choose(names, query))
        if path.endswith("/series"):
            return 200, {}, rows(SERIES, f"{parts[1]}.0")
        return 200, {}, rows(INSTANCE, f"{parts[1]}.0.0", **PHOTOGRAPHS)

    with scripted(handle) as server:
        paths = [one.path for one in PacsListing(server.place, 4)]
        assert len(paths) == len(set(paths))
        return set(paths), [path for path in server.asked if path.startswith("/x/studies?")]


@pytest.mark.parametrize(
    "choose",
    [
        paged,
        lambda names, query: paged(names, query, cap=3),
        lambda names, query: paged(names, query, ignored="limit"),
        lambda names, query: paged(names, query, ignored="offset"),
        lambda names, query: paged(names, query, ignored="limit and offset"),
        # Each page begins with the last row of the one before: a study came in meanwhile
        lambda names, query: names[max(0, int(query["offset"][0]) - 1) :][: int(query["limit"][0])],
        # Orthanc 1.10 with ModalitiesInStudy
        lambda names, query: names[: int(query["limit"][0])][int(query["offset"][0]) :],
    ],
    ids=["sound", "capped", "no limit", "no offset", "no paging", "twice", "from the first row"],
)
def test_every_study_is_listed_once_however_a_server_pages(
    choose: Callable[[list[str], dict[str, list[str]]], list[str]],
) -> None:
    found, asked = listing_of(choose)

    assert found == {path_of(number) for number in range(1, 11)}
    assert len(asked) < 12


@pytest.mark.parametrize(
    "choose",
    [
        lambda names, query: paged(names, query, ignored="offset", cap=4),
        # Begins anew, for ever
        lambda names, query: [*names, *names][int(query["offset"][0]) % 10 :][:4],
    ],
    ids=["no offset and capped", "endless"],
)
def test_a_server_whose_list_has_no_sound_end_is_refused(
    choose: Callable[[list[str], dict[str, list[str]]], list[str]],
) -> None:
    with pytest.raises(ArchiveProblem, match="does not page its lists"):
        listing_of(choose)


@pytest.mark.parametrize(
    ("series", "listed"),
    [
        ((500, {}, b""), "study_not_listed"),
        ((403, {}, b""), "study_not_listed"),
        ((404, {}, b""), "study_not_listed"),
        ((200, {}, b"<html>"), "study_not_listed"),
        ((200, {}, b'"text"'), "study_not_listed"),
        ((200, {}, b"[1]"), "study_not_listed"),
        ((200, {}, b"[" * 100_000), "study_not_listed"),
        ((200, {}, b"[" + b" " * (9 << 20) + b"]"), "study_not_listed"),
        ((200, {}, rows(SERIES, "../../x")), "no_uid"),
        ((200, {}, b"[{}]"), "no_uid"),
        ((200, {}, b'[{"0020000E": {"Value": {"a": 1}}, "x": 1}]'), "no_uid"),
        ((204, {}, b""), None),
    ],
)
def test_a_study_that_cannot_be_listed_is_one_rejected_entry(
    series: tuple[int, dict[str, str], bytes], listed: str | None
) -> None:
    def handle(path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        parts = path.split("/")
        if path == "studies":
            return 200, {}, rows(STUDY, "2.25.1", "2.25.2", "../../admin")
        if path.endswith("/series"):
            return series if parts[1] == "2.25.1" else (200, {}, rows(SERIES, "2.25.2.0"))
        return 200, {}, rows(INSTANCE, "2.25.2.0.0", **PHOTOGRAPHS)

    with scripted(handle) as server:
        found = [(one.path, one.study_uid, one.rejected) for one in PacsListing(server.place)]
        wedged = [] if listed is None else [(None, "2.25.1", listed)]
        assert sorted(found, key=str) == sorted(
            [(path_of(2), "2.25.2", None), (None, None, "no_uid"), *wedged], key=str
        )
        # And nothing that the server named was asked for elsewhere
        assert [path for path in server.asked if ".." in path or "admin" in path] == []


def test_headers_that_are_too_long_together_are_asked_for_one_by_one() -> None:
    def handle(path: str, _query: Any) -> tuple[int, dict[str, str], bytes]:
        if path == "studies":
            return UP
        if path.endswith("/series"):
            return 200, {}, rows(SERIES, "2.25.1.0")
        if path.endswith("series/2.25.1.0/metadata"):
            return 200, {}, b"[" + b" " * (9 << 20) + b"]"
        if path.endswith("/instances"):
            return 200, {}, rows(INSTANCE, "2.25.1.0.0", "2.25.1.0.1")
        return 200, {}, rows(INSTANCE, path.split("/")[-2], **PHOTOGRAPHS, **{"00280008": 2})

    with scripted(handle) as server:
        found = {one.path: one.read() for one in PacsListing(server.place)}
        assert found.keys() == {path_of(1), path_of(1, 0, 1)}
        assert {one.frames for one in found.values()} == {2}
