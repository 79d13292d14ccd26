"""Addresses on object storage: what they may hold, and what is said where they cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from db.errors import SettingsError
from db.settings import HomeSettings, read_settings
from producer.cli import cli
from worker.objects import ObjectFolder, read_address
from worker.settings import WorkerSettings

SECRET = "AKIAHUSHHUSH"


def test_an_address_is_a_bucket_and_a_prefix() -> None:
    assert read_address("s3://bucket/a/b/") == ("bucket", "a/b")
    assert read_address("S3://bucket") == ("bucket", "")
    place = ObjectFolder.at("s3://bucket/a/b/", None)
    assert (str(place), place.name) == ("s3://bucket/a/b", "b")
    assert (str(ObjectFolder.at("s3://bucket/", None)), ObjectFolder.at("s3://bucket", None).name) == (
        "s3://bucket",
        "bucket",
    )


@pytest.mark.parametrize(
    "address",
    [
        f"s3://{SECRET}:secret@bucket/a",
        f"s3://{SECRET}@bucket/a",
        f"s3://{SECRET}:se/cret@bucket",
        f"s3://bucket/a?key={SECRET}",
        f"s3://bucket/a#{SECRET}",
        f"s3://bucket:{SECRET}/a",
    ],
)
def test_an_address_with_more_in_it_is_refused_and_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(cli, ["submit", address])
    assert said.exit_code == 2
    assert "credentials go into the environment" in said.output
    assert SECRET not in said.output

    monkeypatch.setenv("WORKER_ARCHIVE_ROOTS", f'{{"/archive": "{address}"}}')
    with pytest.raises(SettingsError, match="credentials go into the environment") as refused:
        read_settings(WorkerSettings)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("address", ["s3://", "s3:///a", "s3://b", "s3://bucket/../a", "s3://bucket/a//b", "s3://b_/x"])
def test_an_address_that_leads_elsewhere_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="s3://bucket/prefix"):
        read_address(address)


@pytest.mark.parametrize(
    "endpoint",
    ["ftp://host", "host:9000", "https://", f"https://{SECRET}:x@host", "https://host/path", "https://h?x=1"],
)
def test_an_endpoint_that_is_no_bare_server_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_S3_ENDPOINT", endpoint)
    with pytest.raises(SettingsError, match=r"WORKER_S3_ENDPOINT: give http\(s\)://host:port alone") as refused:
        read_settings(WorkerSettings)
    assert SECRET not in str(refused.value)


def test_an_archive_may_be_a_folder_here_and_objects_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ARCHIVE_ROOTS", '{"/archive": "s3://bucket/a", "s3://bucket/b": "/mounted"}')
    monkeypatch.setenv("WORKER_S3_ENDPOINT", "https://host:9000/")
    settings = read_settings(WorkerSettings)
    assert settings.archive_root("/archive") == ObjectFolder.at("s3://bucket/a", "https://host:9000")
    assert settings.archive_root("s3://bucket/b") == Path("/mounted")
    assert settings.archive_root("s3://bucket/c") == ObjectFolder.at("s3://bucket/c", "https://host:9000")


def test_a_store_on_object_storage_has_a_copy_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path))
    monkeypatch.setenv("LESION_SCREEN_STORE", "s3://bucket/store")
    assert read_settings(HomeSettings).store_path == tmp_path / "store"


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path))
    monkeypatch.setattr("worker.s3.find_spec", lambda _name: None)

    said = CliRunner().invoke(cli, ["submit", "s3://bucket/a"])

    assert said.exit_code == 2
    assert said.output.strip() == (
        "Error: An s3:// address needs the extra s3; install it: pip install 'lesion-screen[s3]'."
    )
