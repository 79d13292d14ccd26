"""Health checks of real parts: each says what is the case, and each way to be ill is told apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from db.models import register_model
from tests.servers import find_port
from tests.stack import ROOT
from worker.vitals import read_vitals, vitals_path, write_vitals

if TYPE_CHECKING:
    from pathlib import Path

    from tests.archive import Archive
    from tests.servers import RedisServer
    from tests.stack import Stack


@pytest.fixture(autouse=True)
def own_temporary_folder(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of one name in tests beside each other must not read each other's signs of life."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    stack.environment["TMPDIR"] = str(folder)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("LESION_SCREEN_HOME", stack.environment["LESION_SCREEN_HOME"])


def check(stack: Stack, part: str, *arguments: str, **settings: str) -> tuple[int, str]:
    """Ask as a container's health check does."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.health", part, *arguments],
        env=stack.environment | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


def test_a_worker_is_healthy_while_it_works_and_while_it_waits(archive: Archive, stack: Stack) -> None:
    # Given a worker in the middle of a chunk
    archive.activate_model()
    node = ("--node", "w1@test")
    assert check(stack, "worker", *node) == (1, "No pool child of w1@test has come up yet: see the worker's log.")
    batch = archive.load(archive.draw(20))
    stack.start_feeder()
    worker = stack.start_worker(**stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If it is asked how it is, then, afterwards, and when its child was killed
    assert check(stack, "worker", *node) == (0, "worker works on a chunk, on the cpu")
    assert check(stack, "feeder") == (0, "feeder feeds")
    stack.let_go()
    stack.until(lambda: archive.counts(batch).open == 0)
    stack.until(lambda: check(stack, "worker", *node) == (0, "worker idle"))
    worker.kill()
    vitals = read_vitals("w1@test")
    assert vitals is not None
    os.kill(vitals.pid, signal.SIGKILL)
    stack.until(lambda: "has died" in check(stack, "worker", *node)[1])


def test_a_worker_whose_lease_ran_out_does_not_get_on(archive: Archive, stack: Stack) -> None:
    # Given a worker that is stopped in its tracks
    archive.load(archive.draw(20))
    stack.start_feeder()
    stack.start_worker(WORKER_STALL_SECONDS="1", WORKER_HARD_LIMIT_SECONDS="500", **stack.hold())
    # Then its lease is let run out, and that is ill health
    said = "The worker does not get on with its chunk, whose lease has run out: see its log."
    stack.until(lambda: check(stack, "worker", "--node", "w1@test") == (1, said))


def test_a_worker_that_hears_of_no_work_is_ill(archive: Archive, stack: Stack) -> None:
    # Given an idle child, and a batch that was opened long ago with nobody to ring
    archive.load(archive.draw(3))
    write_vitals("w1@test", busy=False, models=())
    assert check(stack, "worker", "--node", "w1@test") == (0, "worker idle")
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET opened_at = opened_at - 1000"))
    path = vitals_path("w1@test")
    told = read_vitals("w1@test")
    assert told is not None
    path.write_text(told.model_copy(update={"since": told.since - 1000}).model_dump_json(), encoding="utf-8")

    # Then that is ill health, unless the window is closed
    code, sentence = check(stack, "worker", "--node", "w1@test")
    assert code == 1
    assert sentence.startswith("Work waits and none has reached this worker")
    # And a model that could not be loaded is another one
    register_model(archive.engine, digest="b" * 64, name="m", backbone="b", metrics={}, data_digest="0" * 64)
    archive.activate_model()
    assert "could not be loaded" in check(stack, "worker", "--node", "w1@test")[1]


@pytest.mark.parametrize("leased", [True, False])
def test_a_worker_without_a_lease_is_well_where_it_needs_none(archive: Archive, stack: Stack, *, leased: bool) -> None:
    # Given a child that has worked for long: screened a chunk, or drawn one, for which there is no lease
    write_vitals("w1@test", busy=True, models=("a",), leased=leased)
    told = read_vitals("w1@test")
    assert told is not None
    long_ago = told.model_copy(update={"since": told.since - 1000})
    vitals_path("w1@test").write_text(long_ago.model_dump_json(), encoding="utf-8")

    # Then no lease is ill health for the first alone
    assert check(stack, "worker", "--node", "w1@test")[0] == int(leased)
    assert archive.number("SELECT count(*) FROM chunk") == 0


def test_signs_of_life_are_not_written_through_somebody_elses_link(tmp_path: Path) -> None:
    # Given a link that waits where the file is to be
    victim = tmp_path / "victim"
    victim.write_text("precious", encoding="utf-8")
    vitals_path("w1@test").symlink_to(victim)
    assert read_vitals("w1@test") is None

    write_vitals("w1@test", busy=True, models=("a",))

    # Then the link is replaced, and what it pointed at is whole
    assert victim.read_text(encoding="utf-8") == "precious"
    told = read_vitals("w1@test")
    assert told is not None
    assert (told.pid, told.busy) == (os.getpid(), True)
    assert vitals_path("w1@test").stat().st_mode & 0o777 == 0o600


def test_other_parts_say_what_they_lack(archive: Archive, stack: Stack, redis_server: RedisServer) -> None:
    assert check(stack, "feeder")[0] == 1
    assert check(stack, "beat") == (0, "beat waits for its hour")
    redis_server.kill()
    assert check(stack, "beat") == (1, "Redis does not answer (ConnectionError).")
    assert check(stack, "flower", FLOWER_PORT=str(find_port()), FLOWER_BASIC_AUTH="a:correct horse") == (
        1,
        "Flower does not answer: see its log.",
    )
    away = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    assert check(stack, "feeder", DB_URL=away)[1].startswith("The ledger does not answer")
    assert archive.number("SELECT count(*) FROM batch") == 0


def test_workers_of_one_name_in_two_homes_have_signs_of_life_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = vitals_path("screener-1@host")
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path / "other"))
    assert vitals_path("screener-1@host") != here
