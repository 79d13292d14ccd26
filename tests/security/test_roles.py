"""The roles of a PostgreSQL ledger: the program works under them, and nobody does anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import Engine, make_url, select, table, text

import db.session
from db.labels import confirmed_images
from db.models import active_model, register_model
from db.run_log import list_events
from db.runs import (
    cancel_run,
    claim_run,
    count_gate_use,
    due_runs,
    finish_run,
    note_model,
    queue_run,
    queue_scheduled_run,
    report_epoch,
)
from db.session import open_ledger
from db.tables import Base
from db.views import VIEWS
from tests.archive import MODEL, Archive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import PostgresServer
    from tests.stack import Stack

SHIPPED = Path(db.session.__file__).with_name("roles.sql")
LOGINS = {
    "gpu_host": "lesion_worker",
    "trainer_host": "lesion_trainer",
    "archivist": "lesion_producer",
    "dashboard": "lesion_reader",
}


@pytest.fixture
def ledger(postgres_ledger: Engine, postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Engine]:
    """Give a ledger whose owner has run the shipped file, and a login of each role."""
    name = str(postgres_ledger.url.database)
    with psycopg.connect(host=str(postgres_server.sockets), user="postgres", dbname=name, autocommit=True) as owner:
        # Twice: it may be run again.
        for _ in range(2):
            owner.execute(SHIPPED.read_text(encoding="utf-8").encode())
        for login, role in LOGINS.items():
            owner.execute(f"CREATE ROLE {login} LOGIN".encode())
            owner.execute(f"GRANT {role} TO {login}".encode())
    Archive(engine=postgres_ledger, root=tmp_path).activate_model()
    try:
        yield postgres_ledger
    finally:
        # Roles are the server's, not the database's.
        with psycopg.connect(host=str(postgres_server.sockets), user="postgres", dbname=name, autocommit=True) as owner:
            for login in LOGINS:
                owner.execute(f"DROP ROLE {login}".encode())


def address(ledger: Engine, login: str) -> str:
    return make_url(str(ledger.url)).set(username=login).render_as_string(hide_password=False)


def test_an_archive_is_screened_and_read_under_the_roles(archive: Archive, stack: Stack, tmp_path: Path) -> None:
    # Given a worker and a feeder under the worker's role, and the commands under the producer's
    worker, producer = address(archive.engine, "gpu_host"), address(archive.engine, "archivist")
    stack.start_feeder(DB_URL=worker)
    stack.start_worker(DB_URL=worker)
    archive.draw(12)
    (archive.root / "broken.png").write_bytes(b"no image")
    (archive.root / "metadata.csv").write_text("isic_id,patient_id\n000,P1\n")

    def command(*arguments: object, code: int = 0) -> str:
        return stack.command(*arguments, code=code, DB_URL=producer).stdout

    # If an archive goes all the way, with every command on it
    batch = json.loads(command("submit", archive.root))["batch"]
    stack.until(lambda: archive.counts(batch).open == 0)
    stack.until(lambda: archive.number("SELECT count(*) FROM drift") == 1)
    command("run", archive.root, code=1)
    command("status")
    command("drift", batch)
    command("retry", batch)
    command("resume", batch, "--workers", "0", code=1)
    command("pause", batch)
    command("cancel", batch)
    command("export", batch, "--out", tmp_path / "results.csv")
    command("forget", "P1", "--yes")
    command("verify", batch)
    command("verify", "--audit")

    # Then nobody lacked a right, and the reader sees verdicts
    assert archive.counts(batch).done == 11
    assert archive.counts(batch).rejected == 1
    reader = open_ledger(address(archive.engine, "dashboard"))
    with reader.connect() as connection:
        seen = connection.exec_driver_sql("SELECT count(*) FROM item JOIN result USING (input_digest)").scalar_one()
        ranked = connection.exec_driver_sql("SELECT * FROM v_worklist WHERE malignant_score IS NOT NULL").all()
        (summary,) = connection.exec_driver_sql("SELECT * FROM v_batch_summary").mappings().all()
    reader.dispose()
    assert seen == len(ranked) == 11
    assert (summary["found"], summary["done"], summary["rejected"]) == (12, 11, 1)


def test_a_model_is_trained_and_promoted_under_the_roles(archive: Archive) -> None:
    # Given the three who have to do with a training run
    engines = {login: open_ledger(address(archive.engine, login)) for login in LOGINS}
    producer, trainer = engines["archivist"], engines["trainer_host"]
    try:
        # If one is asked for, rung for, worked on and promoted
        run = queue_run(producer, {}, "archivist")
        assert due_runs(engines["gpu_host"]) == [run]
        claimed = claim_run(trainer, run, worker="t")
        assert claimed is not None
        assert confirmed_images(trainer).images == ()
        report_epoch(trainer, run, 1, {"epoch": 1})
        register_model(trainer, digest="b" * 64, name="m", backbone="b", metrics={}, data_digest="c" * 64)
        note_model(trainer, run, 1, "b" * 64)
        assert count_gate_use(trainer, run, "d" * 64) == 1
        assert finish_run(trainer, run, 1, gate={}, promote_over=MODEL)
        scheduled = queue_scheduled_run(trainer, {}, "schedule", least_labels=0)
        assert scheduled is not None

        # Then nobody lacked a right, and who asked may cancel and look
        assert cancel_run(producer, scheduled, "archivist")
        assert [event.kind for event in list_events(producer, run)][-1] == "done"
        active = active_model(producer)
        assert active is not None
        assert active.digest == "b" * 64
    finally:
        for engine in engines.values():
            engine.dispose()


@pytest.mark.parametrize(
    ("login", "statement"),
    [
        ("gpu_host", "SELECT patient_ref FROM item"),
        ("gpu_host", "SELECT * FROM audit"),
        ("gpu_host", "UPDATE result SET p_mel = 0"),
        ("gpu_host", "DELETE FROM result"),
        ("gpu_host", "UPDATE item SET path = 'x'"),
        ("gpu_host", "UPDATE batch SET state = 'cancelled'"),
        ("gpu_host", "INSERT INTO batch (name) VALUES ('x')"),
        ("gpu_host", "UPDATE model_version SET state = 'active'"),
        ("trainer_host", "SELECT patient_ref FROM item"),
        ("trainer_host", "SELECT labelled_by FROM label"),
        ("trainer_host", "UPDATE item SET label = 'nv'"),
        ("trainer_host", "INSERT INTO label (item_id) VALUES (1)"),
        ("trainer_host", "UPDATE model_version SET metrics = '{}'"),
        ("trainer_host", "DELETE FROM training_run"),
        ("trainer_host", "DELETE FROM audit"),
        ("archivist", "UPDATE training_run SET gate = '{}'"),
        ("archivist", "UPDATE audit SET actor = 'x'"),
        ("archivist", "DELETE FROM audit"),
        ("archivist", "TRUNCATE audit"),
        ("archivist", "UPDATE result SET p_mel = 0"),
        ("archivist", "UPDATE model_version SET state = 'active'"),
        ("archivist", "DROP TABLE batch"),
        ("archivist", "CREATE TABLE other (n int)"),
        ("dashboard", "SELECT path FROM item"),
        ("dashboard", "SELECT patient_ref FROM item"),
        ("dashboard", "SELECT lesion_id FROM item"),
        ("dashboard", "SELECT source FROM batch"),
        ("dashboard", "SELECT * FROM audit"),
        ("dashboard", "INSERT INTO result (id) VALUES (1)"),
        ("dashboard", "UPDATE item SET age = 1"),
        ("dashboard", "SELECT id FROM item FOR UPDATE"),
        ("gpu_host", "SELECT * FROM v_worklist"),
        ("trainer_host", "SELECT * FROM v_batch_summary"),
    ],
)
def test_a_role_does_nothing_beyond_its_work(ledger: Engine, login: str, statement: str) -> None:
    engine = open_ledger(address(ledger, login))
    try:
        with engine.connect() as connection, pytest.raises(Exception, match=r"permission denied|must be owner"):
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def test_every_table_is_spoken_of_in_the_roles() -> None:
    # A table that a migration adds is nobody's until somebody has thought about it.
    rules = SHIPPED.read_text(encoding="utf-8")
    said = {name for name in Base.metadata.tables if f" {name} TO" in rules or f" {name}, " in rules}
    assert said == set(Base.metadata.tables)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shows_its_reader_nothing_that_the_tables_do_not(view: str, ledger: Engine) -> None:
    # Given what a dashboard may read of the tables
    with ledger.connect() as connection:
        granted = connection.exec_driver_sql(
            "SELECT column_name FROM information_schema.column_privileges WHERE grantee = 'lesion_reader'"
            " AND privilege_type = 'SELECT' AND table_name IN ('batch', 'chunk', 'item', 'result')"
        ).scalars()
        readable = set(granted)
    # The ids under a clearer name, and sums of what is granted.
    readable |= {"item_id", "batch_id", "found", "open", "done", "referred", "rejected", "quarantined"}

    # If it reads a view, whole
    reader = open_ledger(address(ledger, "dashboard"))
    try:
        with reader.connect() as connection:
            columns = set(connection.execute(select(text("*")).select_from(table(view))).keys())
    finally:
        reader.dispose()

    # Then there is no column that the tables would refuse
    assert columns <= readable
    assert "path" not in readable
