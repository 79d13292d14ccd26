"""Backing a ledger up while it is used, and restoring it, as RUNBOOK.md says."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from db.audit import has_head, record_action, verify_chain
from db.counts import count_items
from db.health import check_batch
from db.session import check_revision, open_ledger
from tests.conftest import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from tests.servers import PostgresServer


@contextmanager
def _recording(scene: Scene, chunks: list[int]) -> Iterator[None]:
    """A worker that goes on recording meanwhile."""
    stop = threading.Event()

    def screen() -> None:
        for chunk in chunks:
            if stop.is_set():
                return
            scene.finish(scene.claim(chunk))

    worker = threading.Thread(target=screen)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def _check(url: str, batch: int, head: str) -> None:
    """What the runbook asks for after a restore."""
    restored = open_ledger(url)
    check_revision(restored)
    assert check_batch(restored, batch) == []
    counts = count_items(restored, batch)
    assert counts.found == 400
    assert counts.done >= 40
    assert verify_chain(restored)
    assert has_head(restored, head)
    # And what was not scored when the backup was made can be scored now
    scene = Scene(engine=restored)
    open_chunks = scene.sql("SELECT id FROM chunk WHERE state = 'open' AND batch_id = :b ORDER BY id", b=batch)
    for (chunk,) in open_chunks[:1]:
        scene.finish(scene.claim(int(str(chunk))))
    restored.dispose()


@pytest.fixture
def busy(request: pytest.FixtureRequest) -> tuple[Scene, int, list[int]]:
    """A batch of which a tenth is scored."""
    ledger: Engine = request.getfixturevalue(request.param)
    scene = Scene(engine=ledger)
    batch, chunks = scene.open(*[10] * 40)
    for chunk in chunks[:4]:
        scene.finish(scene.claim(chunk))
    return scene, batch, chunks[4:]


@pytest.mark.parametrize("busy", ["sqlite_ledger"], indirect=True)
def test_a_backup_of_sqlite_made_while_workers_write_is_sound(
    busy: tuple[Scene, int, list[int]], tmp_path: Path
) -> None:
    # Given a worker that goes on recording, and the head of the audit trail
    scene, batch, chunks = busy
    head = record_action(scene.engine, "me", "export_batch", f"batch {batch}")

    # If the ledger is backed up meanwhile, by the command's shell or by the same call of the library
    ledger, copy = scene.engine.url.database, tmp_path / "copy.sqlite"
    assert ledger is not None
    with _recording(scene, chunks):
        if shutil.which("sqlite3"):
            subprocess.run(["sqlite3", ledger, ".timeout 30000", f".backup {copy}"], check=True)
        else:
            with closing(sqlite3.connect(ledger, timeout=30)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)

    # Then the copy is a sound ledger
    _check(f"sqlite:///{copy}", batch, head)


@pytest.mark.parametrize("busy", ["postgres_ledger"], indirect=True)
def test_a_dump_of_postgresql_made_while_workers_write_is_sound(
    busy: tuple[Scene, int, list[int]], postgres_server: PostgresServer, tmp_path: Path
) -> None:
    # Given a worker that goes on recording, and the head of the audit trail
    scene, batch, chunks = busy
    head = record_action(scene.engine, "me", "export_batch", f"batch {batch}")

    # If the ledger is dumped meanwhile, and restored into another database
    def address(database: str | None) -> str:
        return f"postgresql://postgres@/{database}?host={postgres_server.sockets}"

    dump = tmp_path / "ledger.dump"
    binaries = postgres_server.binaries
    given = ["--format=custom", f"--file={dump}", address(scene.engine.url.database)]
    with _recording(scene, chunks):
        subprocess.run([str(binaries / "pg_dump"), *given], check=True)
    with postgres_server.database() as name:
        given = ["--exit-on-error", "--no-owner", "--dbname", address(name), str(dump)]
        subprocess.run([str(binaries / "pg_restore"), *given], check=True)

        # Then it is a sound ledger
        _check(postgres_server.url(name), batch, head)
