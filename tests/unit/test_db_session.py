"""Opening a ledger: what is refused, and which errors pass by themselves."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy import exc as sa

from db.errors import LedgerError, NetworkFileSystem
from db.migrate import main
from db.session import is_network_path, is_transient, open_ledger

MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:40 / /mnt/share rw shared:1 - nfs4 server:/x rw
3 1 8:2 / /mnt/share/local rw - xfs /dev/sdb1 rw
4 1 0:41 / /mnt/with\\040space rw - cifs //server/y rw
5 1 0:42 / /mnt/covered rw - nfs server:/z rw
6 1 8:3 / /mnt/covered rw - ext4 /dev/sdc1 rw
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/home/x", False),
        ("/mnt/share/a", True),
        ("/mnt/shared", False),
        ("/mnt/share/local/a", False),
        ("/mnt/with space/a", True),
        ("/mnt/covered/a", False),
    ],
)
def test_the_innermost_and_latest_mount_decides(tmp_path: Path, path: str, network: bool) -> None:
    # Given a list of mounts
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS, encoding="utf-8")

    # If a folder is looked up
    # Then the mount that really holds it decides
    assert is_network_path(Path(path), mounts) is network


def test_without_a_list_of_mounts_nothing_is_refused(tmp_path: Path) -> None:
    # Given a kernel that keeps no list
    # If a folder is looked up
    # Then it counts as local
    assert not is_network_path(tmp_path, tmp_path / "absent")


def test_a_ledger_on_a_network_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a home on a network file system
    monkeypatch.setattr("db.session.is_network_path", lambda _: True)

    # If the ledger is opened
    # Then it is refused, with what to do, before a file is made
    with pytest.raises(NetworkFileSystem, match="LESION_SCREEN_HOME"):
        open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d"])
def test_what_cannot_be_a_ledger_is_refused_without_its_address(url: str) -> None:
    # Given an address of another kind
    # If it is opened
    # Then it is refused and the password does not show
    with pytest.raises(LedgerError) as refused:
        open_ledger(url)
    assert "secret" not in str(refused.value)


def test_opening_a_ledger_twice_leaves_the_first_engine_its_locks(sqlite_ledger: Engine) -> None:
    # Given an engine that holds a connection, and another one that opens the same file in this process
    url = sqlite_ledger.url.render_as_string()
    with sqlite_ledger.connect() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM batch").scalar_one()
        connection.rollback()
        open_ledger(url).dispose()

        # If another process opens the file, writes, and leaves as the last one it knows of
        program = (
            "import sqlite3, sys; ledger = sqlite3.connect(sys.argv[1]); "
            "ledger.execute('CREATE TABLE other (n)'); ledger.commit(); ledger.close()"
        )
        subprocess.run([sys.executable, "-c", program, str(sqlite_ledger.url.database)], check=True, timeout=60)

        # Then the write-ahead log is still there, and the engine reads and writes on
        assert Path(f"{sqlite_ledger.url.database}-wal").exists()
        assert connection.exec_driver_sql("SELECT count(*) FROM batch").scalar_one() == before
        connection.exec_driver_sql("INSERT INTO other VALUES (1)")
        connection.commit()
    with sqlite_ledger.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        assert connection.exec_driver_sql("SELECT n FROM other").scalar_one() == 1


def test_a_server_that_refuses_connections_is_transient(tmp_path: Path) -> None:
    # Given an address where no server listens
    engine = open_ledger(f"postgresql://postgres@/x?host={tmp_path}")

    # If it is used
    with pytest.raises(sa.OperationalError) as refused:
        engine.connect()

    # Then waiting would help
    assert is_transient(refused.value)


class _Answer(Exception):  # noqa: N818 - stands for an answer of the server
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "transient"),
    [
        ("40P01", True),  # deadlock
        ("40001", True),  # serialisation failure
        ("53100", True),  # disk full
        ("53300", True),  # too many connections
        ("55P03", True),  # lock not available
        ("25P03", True),  # idle in transaction
        ("57P01", True),  # shutdown
        ("57P03", True),  # starting up
        ("08006", True),  # connection failure
        ("58030", True),  # I/O error
        ("42P01", False),  # no such table
        ("28P01", False),  # wrong password
        ("23505", False),  # unique violation
        ("22P02", False),  # invalid text
    ],
)
def test_what_the_server_answers_says_whether_waiting_helps(sqlstate: str, transient: bool) -> None:
    # Given an error with this SQLSTATE
    error = sa.DBAPIError("SELECT 1", None, _Answer(sqlstate))

    # If it is classified
    # Then waiting helps or not
    assert is_transient(error) is transient


def test_an_exhausted_pool_is_transient_and_a_bug_is_not() -> None:
    # Given errors of other kinds
    # If they are classified
    # Then only the pool's passes by itself
    assert is_transient(sa.TimeoutError())
    assert not is_transient(ValueError())
    assert not is_transient(sa.ProgrammingError("", None, sqlite3.ProgrammingError("misuse")))


def test_the_migration_command_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a misspelt setting
    monkeypatch.setenv("DB_ULR", "x")

    # If the command runs
    # Then it says so in one sentence and asks for nothing else
    assert main() == 2
    assert "DB_ULR" in capsys.readouterr().err
