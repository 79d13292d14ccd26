"""Settings of the ledger."""

from pathlib import Path

import pytest

from db.errors import SettingsError
from db.settings import DbSettings, HomeSettings, read_settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("DB_", "LESION_SCREEN_")):
            monkeypatch.delenv(name)


def test_without_settings_everything_lies_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a home and no address
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path))

    # If the settings are read
    home = read_settings(HomeSettings)

    # Then ledger and store lie in it
    assert home.store_path == tmp_path / "store"
    assert read_settings(DbSettings).ledger_url(home) == f"sqlite:///{tmp_path}/ledger.sqlite"


def test_without_a_home_it_is_the_platforms_own() -> None:
    # Given no setting at all
    # If the home is asked for
    # Then it is the state folder of this user
    assert read_settings(HomeSettings).home.name == "lesion-screen"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_an_address_and_a_store_are_taken_as_they_are(
    scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given both
    monkeypatch.setenv("DB_URL", f"{scheme}://u:secret@h/d")
    monkeypatch.setenv("LESION_SCREEN_STORE", str(tmp_path))

    # If the settings are read
    settings, home = read_settings(DbSettings), read_settings(HomeSettings)

    # Then they are used, and the password does not show
    assert settings.ledger_url(home) == f"{scheme}://u:secret@h/d"
    assert home.store_path == tmp_path
    assert "secret" not in repr(settings)


def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given an address that a shell's variable was to fill
    monkeypatch.setenv("DB_URL", "")
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path))

    # If the settings are read, then it is the home's own ledger, as if nothing was set
    settings = read_settings(DbSettings)
    assert settings.url is None
    assert settings.ledger_url(read_settings(HomeSettings)) == f"sqlite:///{tmp_path}/ledger.sqlite"


@pytest.mark.parametrize(("store", "place"), [(None, "ls/store"), ("~/models", "models"), ("s3://b/x", "ls/store")])
def test_a_tilde_is_the_users_home(
    store: str | None, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given settings that no shell has expanded, as in a unit of systemd
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LESION_SCREEN_HOME", "~/ls")
    if store is not None:
        monkeypatch.setenv("LESION_SCREEN_STORE", store)

    # If they are read, then ledger and store lie below the user's home
    home = read_settings(HomeSettings)
    assert home.store_path == tmp_path / place
    assert home.ledger_url == f"sqlite:///{tmp_path}/ls/ledger.sqlite"


@pytest.mark.parametrize("name", ["LESION_SCREEN_HOME", "LESION_SCREEN_STORE", "DB_URL"])
def test_a_tilde_of_nobody_is_said_without_the_name(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path))
    monkeypatch.setenv(name, "sqlite:///~zauberfrau/ls" if name == "DB_URL" else "~zauberfrau/ls")

    with pytest.raises(SettingsError, match=f"{name}: .* give the path in full") as refused:
        read_settings(DbSettings if name == "DB_URL" else HomeSettings)

    assert "zauberfrau" not in str(refused.value)


def test_a_misspelt_setting_is_refused_by_name_and_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a variable that is no setting
    monkeypatch.setenv("DB_ULR", "postgresql://u:secret@h/d")

    # If the settings are read
    with pytest.raises(SettingsError) as refused:
        read_settings(DbSettings)

    # Then one sentence names it and what there is
    assert "DB_ULR: no such setting" in str(refused.value)
    assert "DB_URL" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_value_that_makes_no_sense_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a pool without connections
    monkeypatch.setenv("DB_POOL_SIZE", "0")

    # If the settings are read
    # Then the sentence names the setting
    with pytest.raises(SettingsError, match="DB_POOL_SIZE"):
        read_settings(DbSettings)


def test_what_is_not_in_the_environment_is_read_from_a_file_of_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given an address in a file, as Docker and systemd hand secrets over, beside files that are somebody else's
    (tmp_path / "db_url").write_text("postgresql+psycopg://u:s3cret@h/n\n", encoding="utf-8")
    (tmp_path / "redis_password").write_text("other", encoding="utf-8")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

    # If the settings are read, it counts
    settings = read_settings(DbSettings)
    assert settings.ledger_url(read_settings(HomeSettings)) == "postgresql+psycopg://u:s3cret@h/n"
    assert "s3cret" not in repr(settings)

    # Unless the environment says otherwise
    monkeypatch.setenv("DB_URL", "sqlite:////tmp/other")
    assert read_settings(DbSettings).ledger_url(read_settings(HomeSettings)) == "sqlite:////tmp/other"


def test_a_folder_of_secrets_that_is_not_there_is_no_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "none"))
    assert read_settings(DbSettings).url is None
