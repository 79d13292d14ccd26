"""A PostgreSQL ledger and a real Redis server, two workers, one of them killed half-way."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import text

from model.synthetic import synthesize_archive
from producer.broker import PrivateRedis

if TYPE_CHECKING:
    from tests.acceptance.conftest import Screen


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis server of the test's own, with a password."""
    server = PrivateRedis(tmp_path / "server", os.environ)
    server.start()
    yield server.url
    server.child.ask_to_end()
    server.child.await_end()


def workers_of(home: Path) -> list[psutil.Process]:
    """The Celery parents that live on a home."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("LESION_SCREEN_HOME") == str(home)
            parent = process.parent()
            celery = "celery" in process.cmdline()
            if ours and celery and parent is not None and "celery" not in parent.cmdline()[2:4]:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_a_worker_killed_half_way_loses_nothing_and_doubles_nothing(
    screen: Screen, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    # Given an archive that two workers screen through PostgreSQL and Redis
    archive = tmp_path / "archive"
    synthesize_archive(archive, images=96, broken=5, seed=3)
    screen.environment.update(
        DB_URL=postgres_url,
        WORKER_BROKER_URL=redis_url,
        WORKER_LEASE_SECONDS="4",
        WORKER_HEARTBEAT_SECONDS="1",
        WORKER_QUIET_SECONDS="1",
        WORKER_RECORD_SECONDS="0.1",
        PRODUCER_CHUNK_ITEMS="16",
    )
    run = subprocess.Popen(
        screen.command("run", archive, "--workers", 2, "--json"), env=screen.env(), stdout=subprocess.PIPE, text=True
    )

    # If one worker and its children are killed once the first results are in
    engine = screen.ledger()
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline, "no result came"
        try:
            with engine.connect() as connection:
                if connection.execute(text("SELECT count(*) FROM result")).scalar_one():
                    break
        except Exception as error:  # noqa: BLE001 - the schema is still being made
            assert "result" in str(error)  # noqa: PT017 - any other error is a failure
        time.sleep(0.05)
    victim = workers_of(screen.home)[0]
    for process in (victim, *victim.children(recursive=True)):
        process.kill()

    # Then the counts add up, and no input has two results
    report = json.loads(run.communicate(timeout=240)[0])
    assert run.returncode == 1
    assert (report["found"], report["open"], report["rejected"]) == (101, 0, 5)
    assert report["done"] + report["referred"] == 96
    assert screen.sound(report["batch"])
    assert screen.results() == 96
    engine.dispose()
