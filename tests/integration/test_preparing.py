"""How a ledger is prepared for a batch: one machine's whatever it lacks, a server's only where it is empty."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text

from db.errors import SchemaMismatch
from db.models import active_model
from producer import ledger as preparing
from producer.errors import ServiceProblem
from producer.ledger import open_prepared, read_place
from tests.archive import MODEL, Archive

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def server(own_home: Path, postgres_ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A server's ledger with an active model, as the settings name it."""
    assert own_home
    Archive(engine=postgres_ledger, root=tmp_path / "archive").activate_model()
    monkeypatch.setenv("DB_URL", postgres_ledger.url.render_as_string(hide_password=False))
    return postgres_ledger


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The places that were registered in; nothing else happens there."""
    places: list[object] = []
    monkeypatch.setattr(preparing, "_register", places.append)
    return places


def age(engine: Engine) -> None:
    """Let a ledger be that of an earlier program."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))


def test_a_servers_schema_is_left_to_whoever_runs_it(server: Engine) -> None:
    # Given a server with the schema of an earlier program
    age(server)

    # If a batch is to be written into it, then it is refused with the next step, and is as it was
    for register in (True, False):
        with pytest.raises(SchemaMismatch, match=r"has schema 0001 .* run `python -m db.migrate`"):
            open_prepared(read_place(), register=register)
    with server.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0001"


@pytest.mark.usefixtures("server")
def test_a_server_with_a_model_is_not_registered_in_again(
    registered: list[object], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a cluster, whose models are in a store that this machine need not see
    monkeypatch.setenv("WORKER_BROKER_URL", "redis://127.0.0.1:1/0")

    # If a batch is to be written into it, then nothing is asked of a role that may register nothing
    engine, model = open_prepared(read_place(), register=True)
    engine.dispose()
    assert (model, registered) == (MODEL, [])

    # If this machine is to run workers of its own, then it is asked until its store has the model
    monkeypatch.delenv("WORKER_BROKER_URL")
    open_prepared(read_place(), register=True)[0].dispose()
    assert len(registered) == 1
    (own_home / "store" / "models" / MODEL).mkdir(parents=True)
    open_prepared(read_place(), register=True)[0].dispose()
    assert len(registered) == 1


def test_an_empty_server_is_prepared_for_its_first_batch(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    monkeypatch.setenv("DB_URL", postgres_url)

    # If only something was to be submitted, then it is said what is missing
    with pytest.raises(SchemaMismatch, match="empty"):
        open_prepared(read_place(), register=False)

    # If it is a run, then schema and shipped model are there
    engine, model = open_prepared(read_place(), register=True)
    active = active_model(engine)
    engine.dispose()
    assert active is not None
    assert active.digest == model
    assert (own_home / "store" / "models" / model).is_dir()


def test_one_machines_schema_goes_with_its_program(sqlite_ledger: Engine, registered: list[object]) -> None:
    # Given the embedded ledger with the schema of an earlier program
    age(sqlite_ledger)

    # If a batch is to be written into it, then it is brought up to date, here by what does nothing
    for register in (True, False):
        with pytest.raises(SchemaMismatch):
            open_prepared(read_place(), register=register)
    assert len(registered) == 2


def test_a_role_that_may_register_nothing_is_told_who_may(
    postgres_ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server without a model, and a login that only reads
    name = postgres_ledger.url.database
    with postgres_ledger.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE reader_{name} LOGIN")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_{name}")
    address = postgres_ledger.url.set(username=f"reader_{name}").render_as_string(hide_password=False)
    monkeypatch.setenv("DB_URL", address)

    # If it runs a batch, then it is told so in a sentence
    try:
        with pytest.raises(ServiceProblem, match=r"refuses this user.*schema's owner") as refused:
            open_prepared(read_place(), register=True)
    finally:
        with postgres_ledger.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY reader_{name}")
            connection.exec_driver_sql(f"DROP ROLE reader_{name}")
    assert "sqlalche.me" not in str(refused.value)


@pytest.mark.parametrize("module", ["worker.register", "db.migrate"])
def test_a_database_that_is_away_is_one_sentence(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", f"postgresql://postgres:secret@/x?host={tmp_path}")

    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 3, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "ledger does not answer" in done.stderr
    assert "secret" not in done.stderr


def test_a_file_that_is_no_ledger_is_one_sentence_of_the_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"this is something else " * 100)
    monkeypatch.setenv("DB_URL", f"sqlite:///{tmp_path / 'x.sqlite'}")

    done = subprocess.run([sys.executable, "-m", "db.migrate"], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "damaged or no ledger" in done.stderr
