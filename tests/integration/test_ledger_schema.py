"""Opening a ledger and bringing it to the newest schema, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, create_engine, inspect, text

from db.errors import SchemaMismatch
from db.migrations.revision import current_revision, head_revision
from db.migrations.upgrade import migration_config
from db.session import check_revision, is_transient, open_ledger, upgrade_schema
from db.tables import Base

if TYPE_CHECKING:
    from pathlib import Path


def test_the_migrations_end_in_the_tables_that_the_code_declares(ledger: Engine) -> None:
    # Given a ledger that was built by the migrations
    with ledger.connect() as connection:
        # If it is compared with the declared tables
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        # Then there is no difference
        assert compare_metadata(context, Base.metadata) == []


def test_the_revision_is_the_one_that_alembic_sees(ledger: Engine) -> None:
    # Given the migrations as Alembic follows them, each naming the one before
    script = ScriptDirectory.from_config(migration_config())

    # If our own reading of file names and of Alembic's table is asked
    with ledger.connect() as connection:
        # Then both say the same
        assert [current_revision(connection)] == [head_revision()] == script.get_heads()


def test_what_only_checks_the_schema_does_not_load_alembic() -> None:
    # Given a process of its own
    program = "import sys, worker.child; sys.exit('alembic' in sys.modules)"

    # If it imports all that a worker needs; then Alembic is not there
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_migrations_end_in_the_declared_constraints(ledger: Engine, tmp_path: Path) -> None:
    # Given the constraints that a ledger has when it is made from the declared tables; Alembic compares none of them
    declared = create_engine(f"sqlite:///{tmp_path / 'declared.sqlite'}")
    Base.metadata.create_all(declared)

    def constraints(engine: Engine) -> set[str]:
        found = inspect(engine)
        tables = set(Base.metadata.tables)
        names = {str(one["name"]) for table in tables for one in found.get_check_constraints(table)}
        names |= {str(one["name"]) for table in tables for one in found.get_unique_constraints(table)}
        return names | {str(one["name"]) for table in tables for one in found.get_foreign_keys(table)}

    # If those of a migrated ledger are compared
    # Then they are the same, all named
    assert constraints(ledger) == constraints(declared)
    assert "None" not in constraints(ledger)
    declared.dispose()


def test_upgrading_again_changes_nothing(ledger: Engine) -> None:
    # Given a ledger of the newest schema
    # If it is upgraded again
    upgrade_schema(ledger)

    # Then it is still the one that the program needs
    check_revision(ledger)


def test_processes_that_upgrade_at_once_all_succeed(ledger_url: str) -> None:
    # Given a ledger that is not there yet
    def start(_: int) -> None:
        engine = open_ledger(ledger_url)
        upgrade_schema(engine)
        check_revision(engine)
        engine.dispose()

    # If four open and upgrade it at the same moment
    # Then none fails
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))


def test_an_empty_and_a_foreign_schema_are_refused_in_one_sentence(ledger_url: str) -> None:
    # Given a ledger without a schema, then one of a later program
    engine = open_ledger(ledger_url)
    with pytest.raises(SchemaMismatch, match=r"empty .* run `python -m db.migrate` first"):
        check_revision(engine)
    upgrade_schema(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    # If the program checks it
    # Then it says what to do
    with pytest.raises(SchemaMismatch, match="has schema 9999"):
        check_revision(engine)
    engine.dispose()


def test_the_migration_command_makes_the_ledger_that_the_environment_names(ledger_url: str) -> None:
    # Given a database address in the environment
    environment = {**os.environ, "DB_URL": ledger_url}

    # If the command runs
    done = subprocess.run([sys.executable, "-m", "db.migrate"], env=environment, check=False, capture_output=True)

    # Then the schema is there
    assert (done.returncode, done.stderr) == (0, b"")
    engine = open_ledger(ledger_url)
    check_revision(engine)
    engine.dispose()


def test_a_cut_connection_is_transient_and_the_next_one_is_fresh(postgres_ledger: Engine) -> None:
    # Given a pooled connection that the server ends
    with postgres_ledger.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with postgres_ledger.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

        # If it is used again
        with pytest.raises(Exception, match="terminat") as cut:
            connection.execute(text("SELECT 1"))

    # Then waiting would help, and the pool gives a good one at once
    assert is_transient(cut.value)
    check_revision(postgres_ledger)


def test_a_worker_frozen_in_a_transaction_does_not_keep_its_locks(postgres_ledger: Engine) -> None:
    # Given a connection of the ledger
    with postgres_ledger.connect() as connection:
        # If its timeouts are read
        idle = connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()
        lock = connection.execute(text("SHOW lock_timeout")).scalar_one()

    # Then the server ends idle transactions, and nobody waits for a lock for ever
    assert (idle, lock) == ("30s", "30s")


def test_a_busy_ledger_is_transient_and_a_missing_table_is_not(
    sqlite_ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a ledger that another process writes to, and a second writer with little time to wait
    monkeypatch.setattr("db.session.BUSY_TIMEOUT_MS", 50)
    hasty = open_ledger(str(sqlite_ledger.url))
    with sqlite_ledger.connect() as writer:
        writer.exec_driver_sql("PRAGMA user_version = 1")

        # If the second would write, and if a statement is wrong
        with pytest.raises(Exception, match="locked") as busy:
            hasty.connect().exec_driver_sql("PRAGMA user_version = 2")
    hasty.dispose()

    # Then that passes, and a bug does not
    with pytest.raises(Exception, match="no such table") as bug, sqlite_ledger.connect() as connection:
        connection.execute(text("SELECT * FROM nowhere"))
    assert is_transient(busy.value)
    assert not is_transient(bug.value)


def test_a_full_disk_is_transient(sqlite_ledger: Engine) -> None:
    # Given a ledger that may not grow
    with sqlite_ledger.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.commit()

        # If something large is written
        with pytest.raises(Exception, match="full") as full:
            connection.exec_driver_sql("CREATE TABLE large AS SELECT randomblob(9000000) AS x")
        connection.rollback()
        connection.invalidate()

    # Then waiting until somebody makes room would help
    assert is_transient(full.value)


def test_a_ledger_on_disk_is_for_its_owner_only_and_has_a_wal(sqlite_ledger: Engine) -> None:
    # Given a new ledger
    from pathlib import Path

    path = Path(str(sqlite_ledger.url.database))

    # If its files and settings are looked at
    with sqlite_ledger.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        keys = connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one()

    # Then patients' data is private, and a crash loses nothing
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert all(file.stat().st_mode & 0o077 == 0 for file in path.parent.iterdir())
    assert (mode, keys) == ("wal", 1)


def test_errors_of_the_database_show_no_parameters(ledger: Engine) -> None:
    # Given a statement with a patient's value in it that fails
    statement = text("INSERT INTO nowhere VALUES (:value)")

    # If it is run
    with pytest.raises(Exception, match="nowhere") as error, ledger.connect() as connection:
        connection.execute(statement, {"value": "CANARY"})

    # Then the error does not show it
    assert "CANARY" not in str(error.value)


def test_the_tables_are_those_of_the_design() -> None:
    # Given the declared tables
    metadata: MetaData = Base.metadata

    # If they are listed
    # Then they are the ones that the design names, the labels, the runs' logs, the drift and the leases
    assert set(metadata.tables) == {
        "batch",
        "chunk",
        "item",
        "label",
        "result",
        "model_version",
        "training_run",
        "run_event",
        "device",
        "drift",
        "audit",
        "lease",
    }
