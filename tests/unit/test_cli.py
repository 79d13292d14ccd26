"""The command line's edge: options, exit codes, plain sentences."""

from __future__ import annotations

import signal
import sqlite3
import time
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from db.errors import UnknownBatch
from producer import commands, inspection, serving
from producer.cli import cli, main
from producer.errors import ServiceProblem, UsageProblem
from producer.staging import PREPARE
from worker.errors import BrokerUnavailable


def _invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("command", ["run", "submit", "status", "resume", "pause", "cancel", "export", "verify"])
def test_every_command_explains_itself(command: str) -> None:
    result = _invoke(command, "--help")

    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["nonsense"],
        ["export", "1", "--format", "xlsx", "--out", "x"],
        ["export", "1"],
        ["verify"],
        ["verify", "zero"],
        ["verify", "0"],
        ["verify", "1", "--audit"],
        ["verify", "1", "--head", "a"],
        ["verify", "--audit", "--rehash"],
        ["run", ".", "--workers", "-1"],
    ],
)
def test_a_wrong_use_ends_with_2(arguments: list[str]) -> None:
    result = _invoke(*arguments)

    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("days", ["0d", "-1d", "year", "36501d", "999999999999999999d", "9" * 5_000])
def test_a_retention_that_no_archive_has_is_a_wrong_use(days: str) -> None:
    result = _invoke("purge", "--older-than", days)

    assert result.exit_code == 2
    assert 'give days, from 1 to 36500, such as "365d"' in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", [["status"], ["verify", "1"], ["resume", "1"], ["pause", "1"], ["cancel", "1"]])
def test_before_the_first_batch_every_command_says_how_to_begin(command: list[str], home: Path) -> None:
    result = _invoke(*command)

    assert result.exit_code == 2
    assert "lesion-screen run ARCHIVE" in result.stderr
    assert not home.exists()


@pytest.mark.parametrize("command", ["run", "submit"])
def test_an_archive_that_is_not_there_is_one_sentence_and_leaves_nothing(
    command: str, tmp_path: Path, home: Path
) -> None:
    result = _invoke(command, str(tmp_path / "missing"))

    assert result.exit_code == 2
    assert result.stderr.startswith("Error: The archive is not a folder")
    assert result.stdout == ""
    assert not home.exists()


def test_state_never_lies_inside_the_archive(tmp_path: Path) -> None:
    # Given a home below the archive
    result = _invoke("submit", str(tmp_path))

    assert result.exit_code == 2
    assert "LESION_SCREEN_HOME" in result.stderr


def test_a_misspelt_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_BROKER_ULR", "redis://secret")

    result = _invoke("submit", str(tmp_path))

    assert result.exit_code == 2
    assert "WORKER_BROKER_ULR" in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageProblem("Said plainly."), 2),
        (UnknownBatch(7), 2),
        (ServiceProblem("Said plainly."), 3),
        (BrokerUnavailable("Said plainly."), 3),
        (OSError(28, "No space left on device"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_person_can_mend_is_a_sentence_and_an_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> int:
        raise error

    monkeypatch.setattr(inspection, "verify", fail)

    result = _invoke("verify", "1")

    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [["status"], ["verify", "1"], ["doctor"], ["submit", "."]])
@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("DB_URL", "nonsense SECRET"),
        ("DB_URL", "postgresql://u:SECRET@h:port/x"),
        ("WORKER_BROKER_URL", "redis://:SECRET@h:port/0"),
        ("WORKER_BROKER_URL", "redis://:SECRET@h:66379/0"),
        ("WORKER_BROKER_URL", "redis://:SECRET@/0"),
        ("WORKER_BROKER_URL", "amqp://:SECRET@h:5672/0"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_without_its_password(
    command: list[str], setting: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting, address)

    result = _invoke(*command)

    assert result.exit_code == 2
    said = result.stdout + result.stderr
    assert f"{setting}: this is no address of a " in said
    assert "SECRET" not in said
    assert "Traceback" not in said


def test_a_file_that_is_no_ledger_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"this is something else " * 100)
    monkeypatch.setenv("DB_URL", f"sqlite:///{tmp_path / 'x.sqlite'}")

    result = _invoke("status")

    assert result.exit_code == 3
    assert "no ledger" in result.stderr
    assert str(tmp_path) not in result.stderr


@pytest.mark.parametrize("command", [["status"], ["submit", "."]])
def test_a_ledger_that_cannot_be_opened_is_one_sentence_at_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an address that names a folder, and one beside which nothing can be written, here for a folder
    (tmp_path / "x.sqlite-journal").mkdir()
    began = time.monotonic()
    for address in (tmp_path, tmp_path / "x.sqlite"):
        monkeypatch.setenv("DB_URL", f"sqlite:///{address}")

        # If a command opens it, then it says what to check, and does not wait for what does not pass
        result = _invoke(*command)
        assert result.exit_code == 3
        assert "ledger's file cannot be opened" in result.stderr
        assert str(tmp_path) not in result.stderr
    assert time.monotonic() - began < 15


def test_a_temporary_folder_without_room_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an archive, and no room where it is staged
    (tmp_path / "archive").mkdir()
    for number in range(200):
        (tmp_path / "archive" / f"{number}{'x' * 100}.png").write_bytes(b"x")
    monkeypatch.setattr("producer.staging.PREPARE", f"{PREPARE} PRAGMA max_page_count = 12;")

    # If it is read
    result = _invoke("submit", str(tmp_path / "archive"), "--dry-run")

    # Then it is said where to make room
    assert result.exit_code == 3, result.exception
    assert "TMPDIR" in result.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (sqlite3.SQLITE_CORRUPT, "damaged"),
        (sqlite3.SQLITE_READONLY, "refuses this user"),
        (sqlite3.SQLITE_FULL, "its disk is full"),
    ],
)
def test_what_the_database_refuses_is_one_sentence(code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = sqlite3.OperationalError("near SECRET")
    cause.sqlite_errorcode = code

    def fail(*_arguments: object, **_options: object) -> int:
        raise OperationalError("SELECT 'SECRET'", None, cause)

    monkeypatch.setattr(inspection, "verify", fail)

    result = _invoke("verify", "1")

    assert result.exit_code == 3
    assert said in result.stderr
    assert "SECRET" not in result.output


@pytest.mark.parametrize("bug", [ValueError(), OperationalError("", None, sqlite3.OperationalError("no such table"))])
def test_a_bug_beside_sound_addresses_stays_a_bug(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", "postgresql://u:p@h/x")
    monkeypatch.setenv("WORKER_BROKER_URL", "redis://h:6379/0")

    def fail(*_arguments: object, **_options: object) -> int:
        raise bug

    monkeypatch.setattr(inspection, "verify", fail)

    assert _invoke("verify", "1").exception is bug


def test_a_bug_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "submit", fail)

    assert isinstance(_invoke("submit", ".").exception, ZeroDivisionError)


def test_a_polite_kill_ends_a_command_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a command that would clean up
    cleaned: list[bool] = []

    def wait(*_arguments: object, **_options: object) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)
        return 0

    monkeypatch.setattr(inspection, "verify", wait)
    before = signal.getsignal(signal.SIGTERM)

    # If it is terminated, then it has cleaned up and says that nothing is lost
    result = _invoke("verify", "1")
    assert result.exit_code == 130
    assert "Nothing is lost" in result.stderr
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_services_that_are_told_to_stop_have_done_their_work(
    number: signal.Signals, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given services that run in the foreground, as systemd has them
    stopped: list[bool] = []

    class Services:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            stopped.append(True)

        def keep_running(self) -> None:
            signal.raise_signal(number)

    engine = create_engine("sqlite://")
    # What it draws is put into the environment, for its children.
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "operator:correct horse battery")
    monkeypatch.setattr(serving, "open_prepared", lambda *_, **__: (engine, "m"))
    monkeypatch.setattr(serving, "LocalStack", lambda *_, **__: Services())

    # If they are told to stop, then they stop in order, and that is no failure
    # (whatever these tests were started by: a job in the background ignores SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = _invoke("serve")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.exit_code, stopped) == (0, [True])
    assert "Nothing is lost" in result.stderr
    assert home.exists()


def test_a_bug_is_named_by_its_place_and_never_quoted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a bug whose text quotes a row
    def fail(*_: object, **__: object) -> int:
        raise RuntimeError("canary.jpg")

    monkeypatch.setattr(inspection, "verify", fail)
    monkeypatch.setattr("sys.argv", ["lesion-screen", "verify", "1"])

    # If it ends the command
    with pytest.raises(SystemExit) as ended:
        main()

    # Then its code is its own
    assert ended.value.code == 70
    printed = capsys.readouterr().err
    assert "RuntimeError" in printed
    assert "test_cli.py:" in printed
    assert "canary" not in printed
