"""Addresses of a PACS and the settings around them: what they may hold, and what is said where they cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from db.errors import SettingsError
from db.settings import read_settings
from producer.cli import cli
from worker.dicomweb import FILTERS, DicomWebPlace, PacsAddress
from worker.settings import WorkerSettings
from worker.wado import Access, WebServer

SECRET = "hush-hush"
PATIENT = "MUSTERMANN"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("dicomweb://pacs.hospital.example", "dicomweb://pacs.hospital.example"),
        ("DICOMWEB://Pacs:443/dicom-web/", "dicomweb://pacs/dicom-web"),
        ("dicomweb://pacs:8043/a/b?Modality=XC&StudyDate=2024", None),
        (
            "dicomweb://pacs:8043/a/b/?StudyDate=20240101-20241231&Modality=XC",
            "dicomweb://pacs:8043/a/b?Modality=XC&StudyDate=20240101-20241231",
        ),
        ("dicomweb://[2001:db8::1]:80/x", "dicomweb://[2001:db8::1]:80/x"),
        ("dicomweb://pacs?StudyInstanceUID=1.2.840.1", "dicomweb://pacs?StudyInstanceUID=1.2.840.1"),
    ],
)
def test_an_address_has_one_form_however_it_is_written(written: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(SettingsError, match="StudyDate in the dicomweb:// address has no sound value"):
            PacsAddress.read(written)
    else:
        assert str(PacsAddress.read(written)) == kept
        assert PacsAddress.read(kept) == PacsAddress.read(written)


@pytest.mark.parametrize(
    "address",
    [f"dicomweb://user:{SECRET}@pacs/x", f"dicomweb://{SECRET}@pacs", f"dicomweb://pacs?token={SECRET}"],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(cli, ["submit", address])
    assert said.exit_code == 2
    assert SECRET not in said.output

    monkeypatch.setenv("WORKER_ARCHIVE_ROOTS", f'{{"/archive": "{address}"}}')
    with pytest.raises(SettingsError, match="WORKER_ARCHIVE_ROOTS: A dicomweb:// address") as refused:
        read_settings(WorkerSettings)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "query",
    [
        f"PatientName={PATIENT}",
        f"PatientID={PATIENT}",
        f"00100010={PATIENT}",
        "AccessionNumber=1",
        f"Modality=XC&PatientBirthDate={PATIENT}",
        f"StudyDescription={PATIENT}",
        "Modality=XC&Modality=DMS",
        "includefield=all",
        "Modality",
        f"Modality=XC;PatientName={PATIENT}",
    ],
)
def test_an_address_that_may_name_a_patient_is_refused_and_not_repeated(query: str) -> None:
    said = CliRunner().invoke(cli, ["submit", f"dicomweb://pacs/x?{query}"])

    assert said.exit_code == 2
    assert PATIENT not in said.output
    assert "Error: " in said.output


def test_every_filter_takes_what_its_attribute_holds() -> None:
    sound = {
        "StudyDate": ("20240101", "20240101-", "-20240101", "20240101-20241231"),
        "StudyTime": ("10", "1010-1200"),
        "ModalitiesInStudy": ("XC",),
        "StudyInstanceUID": ("1.2.840.10008",),
        "Modality": ("DMS",),
        "SeriesInstanceUID": ("1.2",),
        "BodyPartExamined": ("BACK", "UPPER_ARM"),
        "SOPClassUID": ("1.2.840.10008.5.1.4.1.1.77.1.4",),
    }
    assert sound.keys() == FILTERS.keys()
    for name, values in sound.items():
        for value in values:
            assert PacsAddress.read(f"dicomweb://pacs?{name}={value}").filters == ((name, value),)
        for value in ("", "*", "a'b", "1..2", "1." * 40 + "1", "20240101-2024", "%2e%2e", "1%0d%0aX:"):
            with pytest.raises(SettingsError, match=name):
                PacsAddress.read(f"dicomweb://pacs?{name}={value}")


@pytest.mark.parametrize(
    "address",
    [
        "dicomweb://",
        "dicomweb:///x",
        "dicomweb://pacs/../x",
        "dicomweb://pacs/a//b",
        "dicomweb://pacs/%2e%2e",
        "dicomweb://pacs:x/",
        "dicomweb://pacs/x#y",
        "dicomweb://pa cs/x",
        "dicomweb://[::1/x",
        "dicomweb://pacs/a\r\nX: y",
    ],
)
def test_an_address_that_leads_elsewhere_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="A PACS is written dicomweb://HOST:PORT/PATH"):
        PacsAddress.read(address)


def server(address: str, settings: WorkerSettings) -> WebServer:
    found = settings.archive_root(address)
    assert isinstance(found, DicomWebPlace)
    return found.server


def test_only_the_server_that_the_settings_name_gets_credentials_or_is_asked_without_tls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a server without TLS, and its credentials
    monkeypatch.setenv("WORKER_DICOMWEB_SERVER", "http://127.0.0.1:8042")
    monkeypatch.setenv("WORKER_DICOMWEB_USER", "screening")
    monkeypatch.setenv("WORKER_DICOMWEB_PASSWORD", SECRET)
    settings = read_settings(WorkerSettings)

    # Then it alone is ours, and any other is asked with TLS and told nothing
    ours = server("dicomweb://127.0.0.1:8042/x?Modality=XC", settings)
    assert (ours.is_ours, ours.is_plain) == (True, True)
    for address in ("dicomweb://127.0.0.1:8043/x", "dicomweb://127.0.0.1/x", "dicomweb://127.0.0.2:8042/x"):
        other = server(address, settings)
        assert (other.is_ours, other.is_plain) == (False, False)
    assert SECRET not in repr(ours)

    # If it has TLS, its default port may be left out
    monkeypatch.setenv("WORKER_DICOMWEB_SERVER", "https://PACS")
    ours = server("dicomweb://pacs:443/x", read_settings(WorkerSettings))
    assert (ours.is_ours, ours.is_plain) == (True, False)


def test_credentials_are_basic_or_bearer() -> None:
    from pydantic import SecretStr

    # RFC 7617, section 2, whose example this is.
    basic = Access(user="Aladdin", password=SecretStr("open sesame"))
    assert basic.authorization() == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert Access(token=SecretStr(SECRET)).authorization() == f"Bearer {SECRET}"
    assert Access().authorization() is None
    assert SECRET not in repr(Access(token=SecretStr(SECRET)))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"USER": "u"}, "give WORKER_DICOMWEB_USER and WORKER_DICOMWEB_PASSWORD, or"),
        ({"USER": "u", "PASSWORD": SECRET, "TOKEN": SECRET}, "or WORKER_DICOMWEB_TOKEN alone"),
        ({"TOKEN": SECRET}, "WORKER_DICOMWEB_SERVER must name the server"),
        ({"SERVER": f"https://u:{SECRET}@pacs"}, r"WORKER_DICOMWEB_SERVER: give http\(s\)://host:port alone"),
        ({"SERVER": "https://pacs/dicom-web"}, r"WORKER_DICOMWEB_SERVER: give http\(s\)://host:port alone"),
    ],
)
def test_credentials_for_nobody_or_by_halves_are_refused(
    environment: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"WORKER_DICOMWEB_{name}", value)
    with pytest.raises(SettingsError, match=sentence) as refused:
        read_settings(WorkerSettings)
    assert SECRET not in str(refused.value)


def test_certificates_that_cannot_be_read_are_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.pem").write_text("", encoding="ascii")
    for name in ("gone.pem", "empty.pem"):
        monkeypatch.setenv("WORKER_DICOMWEB_CA", str(tmp_path / name))
        with pytest.raises(SettingsError, match="WORKER_DICOMWEB_CA is no file of certificates"):
            read_settings(WorkerSettings).archive_root("dicomweb://pacs/x")


def test_an_archive_may_be_a_folder_here_and_a_pacs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ARCHIVE_ROOTS", '{"/archive": "dicomweb://pacs/a", "dicomweb://pacs/b": "/mounted"}')
    settings = read_settings(WorkerSettings)
    assert str(settings.archive_root("/archive")) == "dicomweb://pacs/a"
    assert settings.archive_root("dicomweb://pacs/b") == Path("/mounted")


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.dicomweb.find_spec", lambda _name: None)

    said = CliRunner().invoke(cli, ["submit", "dicomweb://pacs/a"])

    assert said.exit_code == 2
    assert said.output.strip() == (
        "Error: A dicomweb:// address needs the extra dicom; install it: pip install 'lesion-screen[dicom]'."
    )
