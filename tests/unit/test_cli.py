"""The command line's edge: options, exit codes, plain sentences."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from db.errors import UnknownBatch
from producer import commands, inspection
from producer.cli import cli
from producer.errors import ServiceProblem, UsageProblem
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
        ["run", ".", "--workers", "-1"],
    ],
)
def test_a_wrong_use_ends_with_2(arguments: list[str]) -> None:
    result = _invoke(*arguments)

    assert result.exit_code == 2
    assert "Traceback" not in result.output


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
        (UnknownBatch("Said plainly."), 2),
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
