"""Faults of the database, the disks, the clock, the schema and the archive (table C)."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, make_url, text

from db.batches import ItemRow
from db.session import TRANSIENT_ERRORS, open_ledger
from tests.archive import Archive
from tests.conftest import migrate
from tests.faults.conftest import fill
from tests.faults.proxy import Proxy
from tests.servers import PostgresServer
from tests.stack import SHORT_TIMES, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import RedisServer

MEGABYTE = 1 << 20


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL of this test's own, which may be killed."""
    server = PostgresServer.prepare()
    try:
        server.start()
        migrate(server.url("postgres"))
        yield server
    finally:
        server.remove()


def test_c1_a_database_that_is_down_for_a_while_costs_time_only(
    mortal_postgres: PostgresServer, redis_url: str, tmp_path: Path
) -> None:
    # Given a worker and a feeder in the middle of an archive
    engine = open_ledger(mortal_postgres.url("postgres"))
    archive = Archive(engine=engine, root=tmp_path / "archive")
    rows = archive.draw(64)
    batch = archive.load(rows[:32], rows[32:])
    stack = Stack.prepare(
        tmp_path / "logs", ledger_url=mortal_postgres.url("postgres"), redis_url=redis_url, settings=SHORT_TIMES
    )
    try:
        stack.start_feeder()
        worker = stack.start_worker(**stack.hold())
        stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

        # If the database is killed, and stays away until both have noticed more than once, past a lease
        mortal_postgres.kill()
        stack.let_go()
        stack.until(lambda: all(stack.log(name).count("database is away") > 3 for name in ("w1", "feeder")))
        mortal_postgres.start()

        # Then all is done by the same worker, nobody was charged, and nobody knocked in a hot loop
        stack.until(lambda: archive.counts(batch).open == 0, 60)
        assert archive.counts(batch).done == 64
        assert archive.number("SELECT sum(crashes) FROM chunk") == 0
        assert worker.poll() is None
        assert all(stack.log(name).count("database is away") < 60 for name in ("w1", "feeder"))
    finally:
        stack.stop()
        engine.dispose()


def through(proxy_folder: Path, ledger: Engine) -> str:
    """Name the ledger as seen through a proxy's socket."""
    address = make_url(ledger.url.render_as_string(hide_password=False))
    return address.update_query_dict({"host": str(proxy_folder)}).render_as_string(hide_password=False)


@pytest.fixture
def way(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Proxy]:
    """Give a way to PostgreSQL that can be cut."""
    # A socket's path must be short.
    folder = postgres_server.folder / f"way-{os.getpid()}-{abs(hash(tmp_path)) % 10**6}"
    folder.mkdir()
    proxy = Proxy.start(folder / ".s.PGSQL.5432", postgres_server.sockets / ".s.PGSQL.5432")
    yield proxy
    proxy.stop()
    shutil.rmtree(folder)


@pytest.fixture
def postgres_archive(postgres_ledger: Engine, tmp_path: Path) -> Archive:
    """Give an archive whose ledger is on PostgreSQL."""
    return Archive(engine=postgres_ledger, root=tmp_path / "archive")


def stack_of(ledger_url: str, redis_url: str, folder: Path) -> Stack:
    return Stack.prepare(folder, ledger_url=ledger_url, redis_url=redis_url, settings=SHORT_TIMES)


def test_c2_a_connection_that_is_cut_during_commit_doubles_nothing(
    postgres_archive: Archive, way: Proxy, redis_url: str, tmp_path: Path
) -> None:
    # Given a worker whose way to the database is cut after every fifth COMMIT was sent and before it is answered
    batch = postgres_archive.load(postgres_archive.draw(32))
    seen = 0

    def every_fifth_commit(data: bytes) -> bool:
        nonlocal seen
        seen += b"COMMIT" in data
        return b"COMMIT" in data and seen % 5 == 0

    way.cuts = every_fifth_commit
    folder = way.listener.getsockname().rpartition("/")[0]
    stack = stack_of(through(folder, postgres_archive.engine), redis_url, tmp_path / "logs")
    try:
        # If it screens
        stack.start_feeder()
        stack.start_worker(LIGHT_SECONDS="0.05", WORKER_RECORD_SECONDS="0.01", WORKER_BATCH_SIZE="2")
        stack.until(lambda: postgres_archive.counts(batch).open == 0)
    finally:
        stack.stop()

    # Then it was cut, and each image has its one result
    assert way.cut > 2
    assert postgres_archive.counts(batch).done == 32
    assert postgres_archive.number("SELECT count(*) FROM result") == 32


def test_c3_a_full_disk_under_sqlite_is_waited_out(
    sqlite_template: Path, small_disk: Callable[[Path, int], None], redis_url: str, tmp_path: Path
) -> None:
    # Given a ledger on a small disk, and a worker in the middle of an archive
    disk = tmp_path / "disk"
    small_disk(disk, 8 * MEGABYTE)
    shutil.copy(sqlite_template, disk / "ledger.sqlite")
    engine = open_ledger(f"sqlite:///{disk / 'ledger.sqlite'}")
    archive = Archive(engine=engine, root=tmp_path / "archive")
    batch = archive.load(archive.draw(96))
    stack = stack_of(f"sqlite:///{disk / 'ledger.sqlite'}", redis_url, tmp_path / "logs")
    try:
        stack.start_feeder()
        stack.start_worker(**stack.hold())
        stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

        # If the disk is full
        ballast = fill(disk)
        stack.let_go()
        stack.await_log("w1", "database is away")

        # Then that is said, the ledger is true, and it goes on when there is room
        assert archive.counts(batch).open > 0
        ballast.unlink()
        stack.until(lambda: archive.counts(batch).open == 0, 60)
        assert archive.counts(batch).done == 96
    finally:
        stack.stop()
        engine.dispose()


def test_c3_a_full_disk_under_postgresql_is_waited_out(
    small_disk: Callable[[Path, int], None], redis_url: str, tmp_path: Path
) -> None:
    # Given a database on a small disk, and a worker in the middle of an archive
    server = PostgresServer.prepare()
    data, kept = server.folder / "data", server.folder / "kept"
    data.rename(kept)
    stack = None
    try:
        small_disk(data, 160 * MEGABYTE)
        subprocess.run(["cp", "--archive", "--no-target-directory", kept, data], check=True)
        server.start()
        migrate(server.url("postgres"))
        engine = open_ledger(server.url("postgres"))
        archive = Archive(engine=engine, root=tmp_path / "archive")
        batch = archive.load(archive.draw(160))
        stack = stack_of(server.url("postgres"), redis_url, tmp_path / "logs")
        stack.start_feeder()
        stack.start_worker(**stack.hold())
        stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

        # If the disk is full
        ballast = fill(data)
        stack.let_go()
        stack.await_log("w1", "database is away")

        # Then that is said, and it goes on when there is room
        ballast.unlink()
        stack.until(lambda: _is_finished(archive, batch), 60)
        assert archive.counts(batch).done == 160
        engine.dispose()
    finally:
        if stack is not None:
            stack.stop()
        server.remove()


def _is_finished(archive: Archive, batch: int) -> bool:
    # The server may have to recover first.
    try:
        return archive.counts(batch).open == 0
    except TRANSIENT_ERRORS:
        return False


def test_c3_a_full_disk_under_redis_is_waited_out(
    archive: Archive, stack: Stack, redis_server: RedisServer, small_disk: Callable[[Path, int], None]
) -> None:
    # Given a Redis whose append-only file lies on a full disk
    redis_server.kill()
    small_disk(redis_server.folder, 4 * MEGABYTE)
    redis_server.start()
    ballast = fill(redis_server.folder)
    batch = archive.load(archive.draw(6))
    stack.until(lambda: not _takes(redis_server))

    # If a feeder rings
    stack.start_feeder()
    stack.await_log("feeder", "redis is away")

    # Then it goes on when there is room
    ballast.unlink()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0, 60)
    assert archive.counts(batch).done == 6


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_c3_a_full_disk_under_models_and_temporary_files_is_waited_out(
    archive: Archive, stack: Stack, small_disk: Callable[[Path, int], None], tmp_path: Path
) -> None:
    # Given a small disk for models and temporary files, and a worker in the middle of an archive
    disk = tmp_path / "disk"
    small_disk(disk, 64 * MEGABYTE)
    stack.environment |= {"LESION_SCREEN_STORE": str(disk / "store"), "TMPDIR": str(disk)}
    batch = archive.load(archive.draw(64))
    stack.start_feeder()
    stack.start_worker(**stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If the disk is full, and a model is to be installed
    ballast = fill(disk)
    refused = stack.register_model()
    stack.let_go()

    # Then that is said in a sentence, nothing of it is in the store or the ledger, and screening needs neither
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.startswith("Ledger or model store cannot be written (ENOSPC)")
    assert [path for path in (disk / "store").rglob("*") if path.is_file()] == []
    assert archive.number("SELECT count(*) FROM model_version") == 0
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 64
    # And it is installed when there is room
    ballast.unlink()
    assert stack.register_model().returncode == 0
    assert archive.number("SELECT count(*) FROM model_version WHERE state = 'active'") == 1


def _takes(server: RedisServer) -> bool:
    import redis

    try:
        with server.client as client:
            client.rpush("something", "x" * 4096)
    except redis.RedisError:
        return False
    return True


@pytest.mark.parametrize("lost", ["everything", "answers"])
def test_c4_a_worker_that_is_cut_off_from_the_database_writes_nothing_afterwards(
    postgres_archive: Archive, way: Proxy, redis_url: str, tmp_path: Path, lost: str
) -> None:
    # Given a worker in the middle of a chunk, with a way of its own to the database
    batch = postgres_archive.load(postgres_archive.draw(48))
    stack = stack_of(postgres_archive.engine.url.render_as_string(hide_password=False), redis_url, tmp_path / "logs")
    folder = way.listener.getsockname().rpartition("/")[0]
    try:
        stack.start_feeder()
        zombie = {"DB_URL": through(folder, postgres_archive.engine)}
        stack.start_worker("zombie", **zombie, **stack.hold())
        stack.until(lambda: postgres_archive.number("SELECT count(*) FROM result") > 0)

        # If that way swallows everything, or the answers alone, and another worker comes
        open_way = way.passable if lost == "everything" else way.audible
        open_way.clear()
        stack.let_go()
        stack.start_worker("heir")
        # A transaction that was cut in its middle holds its locks until the server ends it, after 30 s.
        stack.until(lambda: postgres_archive.counts(batch).open == 0, 90)
        before = _rows(postgres_archive)

        # Then the chunk is finished, and the first worker, back in touch, learns that it is not his any more
        open_way.set()
        stack.await_log("zombie", '"ending": "lease_lost"')
        assert _rows(postgres_archive) == before
        assert postgres_archive.counts(batch).done == 48
        assert postgres_archive.number("SELECT count(*) FROM result") == 48
    finally:
        stack.stop()


def _rows(archive: Archive) -> list[tuple[object, ...]]:
    with archive.engine.connect() as connection:
        items = connection.execute(text("SELECT id, state, input_digest FROM item ORDER BY id")).all()
        results = connection.execute(text("SELECT * FROM result ORDER BY id")).all()
        return [tuple(row) for row in [*items, *results]]


def test_c4_a_worker_that_is_cut_off_from_redis_finishes_what_it_has(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a worker with two of three chunks in hand, and a way of its own to Redis
    rows = archive.draw(96)
    batch = archive.load(rows[:32], rows[32:64], rows[64:])
    proxy = Proxy.start(0, redis_server.port)
    try:
        cut_off = {"WORKER_BROKER_URL": redis_server.url.replace(f":{redis_server.port}/", f":{proxy.port}/")}
        stack.start_feeder()
        stack.start_worker("far", **cut_off, **stack.hold())
        stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)
        stack.until(lambda: archive.number("SELECT count(*) FROM chunk WHERE state = 'running'") == 2)

        # If that way swallows everything, and another worker comes
        proxy.passable.clear()
        stack.start_worker("near")
        stack.until(lambda: archive.number("SELECT count(*) FROM chunk WHERE state = 'done'") == 1)
        stack.let_go()
        stack.until(lambda: archive.counts(batch).open == 0, 60)

        # Then each has done its chunks, and nobody is charged
        assert archive.counts(batch).done == 96
        assert archive.number("SELECT sum(crashes) FROM chunk") == 0
        assert archive.number("SELECT count(DISTINCT worker) FROM chunk") == 2
    finally:
        proxy.stop()


@pytest.mark.parametrize("far", ["database", "redis"])
def test_c4_a_worker_far_away_doubles_nothing_beside_a_near_one(
    postgres_archive: Archive, way: Proxy, redis_server: RedisServer, tmp_path: Path, far: str
) -> None:
    # Given a worker on whose way each word takes a fifth of a second, about a tenth of a lease for a transaction
    rows = postgres_archive.draw(48)
    batch = postgres_archive.load(*(rows[start : start + 8] for start in range(0, 48, 8)))
    url = postgres_archive.engine.url.render_as_string(hide_password=False)
    stack = stack_of(url, redis_server.url, tmp_path / "logs")
    proxy = Proxy.start(0, redis_server.port)
    proxy.delay = way.delay = 0.2
    slow = (
        {"DB_URL": through(way.listener.getsockname().rpartition("/")[0], postgres_archive.engine)}
        if far == "database"
        else {"WORKER_BROKER_URL": redis_server.url.replace(f":{redis_server.port}/", f":{proxy.port}/")}
    )
    try:
        stack.start_worker("far", **slow)
        stack.start_feeder()
        stack.until(lambda: postgres_archive.number("SELECT count(*) FROM chunk WHERE attempt > 0") > 0, 90)

        # If a near one joins it
        stack.start_worker("near")
        stack.until(lambda: postgres_archive.counts(batch).open == 0, 120)

        # Then everything is done, and once
        assert postgres_archive.counts(batch).done == 48
        assert postgres_archive.number("SELECT count(*) FROM result") == 48
        stack.await_log("far", '"ending"')
    finally:
        stack.stop()
        proxy.stop()


def test_c5_clocks_two_hours_apart_change_no_count(archive: Archive, stack: Stack, tmp_path: Path) -> None:
    # Given two workers and a feeder whose clocks are two hours ahead, two hours behind, and right
    for name, hours in (("ahead", 2), ("behind", -2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            f"import time\ntrue_time = time.time\ntime.time = lambda: true_time() + {hours * 3600}\n", encoding="utf-8"
        )
    rows = archive.draw(80)
    batch = archive.load(*(rows[start : start + 8] for start in range(0, 80, 8)))
    for name in ("ahead", "behind"):
        path = f"{tmp_path / name}{os.pathsep}{stack.environment['PYTHONPATH']}"
        stack.start_worker(name, LIGHT_SECONDS="0.1", PYTHONPATH=path)
    stack.start_feeder()

    # If they screen
    stack.until(lambda: archive.counts(batch).open == 0, 60)

    # Then no lease was taken over
    assert archive.counts(batch).done == 80
    assert archive.number("SELECT count(*) FROM result") == 80
    assert archive.number("SELECT sum(crashes) FROM chunk") == 0
    assert archive.number("SELECT max(attempt) FROM chunk") == 1


def test_c6_a_migration_in_the_middle_lets_old_workers_go_on_and_no_new_one_begin(
    archive: Archive, stack: Stack
) -> None:
    # Given a worker and a feeder in the middle of an archive
    rows = archive.draw(96)
    batch = archive.load(rows[:48], rows[48:])
    stack.start_feeder()
    stack.start_worker("old", **stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If a newer program expands the schema
    with archive.engine.begin() as connection:
        known = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text("ALTER TABLE item ADD COLUMN newer INTEGER"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    stack.let_go()

    # Then the old worker goes on to the end, and another old one stops with a sentence
    late = stack.start_worker("late")
    stack.await_log("late", f"The ledger has schema 9999 and this program needs {known}")
    late.wait(60)
    stack.until(lambda: archive.counts(batch).open == 0, 60)
    assert archive.counts(batch).done == 96
    # And so does a worker on a schema that is older than itself
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    early = stack.start_worker("early")
    stack.await_log("early", f"The ledger has schema 0000 and this program needs {known}")
    early.wait(60)


def test_c7_an_archive_that_is_unmounted_in_the_middle_rejects_nothing(archive: Archive, stack: Stack) -> None:
    # Given a worker in the middle of an archive
    rows = archive.draw(96)
    batch = archive.load(*(rows[start : start + 32] for start in range(0, 96, 32)))
    stack.start_feeder()
    stack.start_worker(WORKER_DECODED_IMAGES="8", **stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If the archive goes away
    away = archive.root.with_name("away")
    archive.root.rename(away)
    stack.let_go()
    stack.await_log("w1", '"ending": "archive_away"')

    # Then no image pays for it, and all are done when it is back
    counts = archive.counts(batch)
    assert counts.rejected == counts.quarantined == 0
    away.rename(archive.root)
    stack.until(lambda: archive.counts(batch).open == 0, 60)
    assert archive.counts(batch).done == 96
    assert archive.number("SELECT sum(crashes) FROM chunk") == 0


def test_c7_an_archive_with_an_input_output_error_rejects_nothing(archive: Archive, stack: Stack) -> None:
    # Given an image whose reading fails with EIO, which the kernel gives whoever reads address 0 of its own memory
    archive.draw(1)
    sound = archive.root.with_name("sound")
    archive.root.rename(sound)
    (sound / "000.png").rename(sound / "mem")
    archive.root.symlink_to("/proc/self")
    batch = archive.load([ItemRow(path="mem")])

    # If it is screened
    stack.start_feeder()
    stack.start_worker()
    stack.await_log("w1", '"ending": "archive_away"')

    # Then the image does not pay for it, and is done when the archive can be read
    counts = archive.counts(batch)
    assert (counts.open, counts.rejected) == (1, 0)
    archive.root.unlink()
    archive.root.symlink_to(sound)
    stack.until(lambda: archive.counts(batch).open == 0, 60)
    assert archive.counts(batch).done == 1
    assert archive.number("SELECT sum(crashes) FROM chunk") == 0


def test_c7_a_network_file_system_that_fails_rejects_nothing(archive: Archive, stack: Stack, tmp_path: Path) -> None:
    # Given an archive on a file server that will go away
    error, folder = tmp_path / "error", tmp_path / "server"
    folder.mkdir()
    # No file server is at hand that could be made to fail so.
    (folder / "sitecustomize.py").write_text(
        "import errno, os, pathlib\n"
        f"true_open, error = os.open, pathlib.Path({str(error)!r})\n"
        "def open_image(path, *arguments, **named):\n"
        "    if str(path).endswith('.png') and error.exists():\n"
        "        raise OSError(getattr(errno, error.read_text()), 'away')\n"
        "    return true_open(path, *arguments, **named)\n"
        "os.open = open_image\n",
        encoding="utf-8",
    )
    batch = archive.load(archive.draw(8))
    names = ("ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN")
    error.write_text(names[0], encoding="utf-8")
    stack.start_feeder()
    stack.start_worker(PYTHONPATH=f"{folder}{os.pathsep}{stack.environment['PYTHONPATH']}")

    # If it answers each image with one error of such servers after the other
    def was_away(times: int) -> bool:
        return stack.log("w1").count('"ending": "archive_away"') >= times

    for times, name in enumerate(names, 1):
        stack.until(partial(was_away, times), 60)
        # Then no image pays for it
        counts = archive.counts(batch)
        assert (counts.open, counts.rejected, counts.quarantined) == (8, 0, 0), name
        if times < len(names):
            error.with_name("next").write_text(names[times], encoding="utf-8")
            error.with_name("next").replace(error)
    # And all are done when it is back
    error.unlink()
    stack.until(lambda: archive.counts(batch).open == 0, 60)
    assert archive.counts(batch).done == 8
    assert archive.number("SELECT sum(crashes) FROM chunk") == 0
