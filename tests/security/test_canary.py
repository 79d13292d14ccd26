"""A patient's name goes into the ledger and into exports, and nowhere else, whatever fails on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from celery import Celery
from sqlalchemy import text

from db.models import activate_first, register_model
from db.tables import CLASSES
from tests.monitoring import Flower, flower_of
from tests.security.canary import (
    CANARY,
    DEADLY,
    draw,
    files_below,
    is_in,
    listen,
    places,
    plant,
    redis_files,
    redis_keys,
)
from tests.stack import LIGHT, ROOT
from worker.contract import SCREEN_CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.archive import Archive
    from tests.servers import RedisServer
    from tests.stack import Stack

MODEL = "a" * 64


@dataclass(slots=True, kw_only=True)
class Commands:
    """Runs `lesion-screen` in a process of its own, and keeps what it says."""

    environment: dict[str, str]
    said: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, *arguments: object, code: int, before: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"{before}from producer.cli import main; main()", *map(str, arguments)],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.said.append((f"output of {arguments[0]}", done.stdout + done.stderr))
        return done.stdout


def pages_of(flower: Flower) -> Iterator[tuple[str, bytes]]:
    """Read every page and every answer of Flower's API, those about each task included."""
    tasks = flower.tasks()
    paths = ["/", "/workers", f"/worker/{quote('w1@test')}", "/tasks", "/broker", "/metrics", "/healthcheck"]
    paths += ["/tasks/datatable?draw=1&start=0&length=1000&search[value]=&order[0][column]=0&order[0][dir]=asc"]
    paths += ["/api/workers?refresh=1", "/api/tasks", "/api/task/types", "/api/queues/length"]
    paths += [f"{place}/{uuid}" for uuid in tasks for place in ("/task", "/api/task/info")]
    for path in paths:
        yield f"Flower's {path}", flower.read(path)


#: What a database might say of a row that it refuses.
TRIGGER = "CREATE TRIGGER refusing BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'row of {canary} refused'); END"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusing:
    """A database that refuses rows, in words that quote them."""

    archive: Archive

    def begin(self, table: str) -> None:
        self._do(TRIGGER.format(table=table, canary=CANARY))

    def end(self) -> None:
        self._do("DROP TRIGGER refusing")

    def _do(self, statement: str) -> None:
        with self.archive.engine.begin() as connection:
            connection.execute(text(statement))


#: A bug in a command whose text quotes a file's name.
BUG = f"""
from producer import inspection
def verify(*_, **__): raise RuntimeError('no such file: {CANARY}.jpg')
inspection.verify = verify
"""


@pytest.fixture
def refuse(archive: Archive) -> Refusing:
    """Give what makes the ledger refuse rows, in words that quote them."""
    return Refusing(archive=archive)


def test_a_name_is_found_in_the_ledger_and_in_exports_and_nowhere_else(
    archive: Archive, stack: Stack, redis_server: RedisServer, refuse: Refusing, tmp_path: Path
) -> None:
    # Given a ledger with a model, a worker that dies of one image, a feeder, Flower, and an ear on the wire
    prior = dict.fromkeys(CLASSES, 1 / 7)
    register_model(archive.engine, digest=MODEL, name="m", backbone="b", metrics={"prior": prior}, data_digest=MODEL)
    activate_first(archive.engine, MODEL, "test")
    root = tmp_path / f"{CANARY}-archive"
    plant(root)
    command = Commands(environment=stack.environment)
    with listen(redis_server) as wire, flower_of(stack) as flower:
        stack.start_feeder()
        stack.start_worker(
            LIGHT_VICTIM=str(DEADLY), LIGHT_DEATH="child", WORKER_LEASE_SECONDS="1.5", WORKER_QUIET_SECONDS="0.5"
        )

        # If an archive full of it is screened, with rejected files and a worker killed three times
        batch = json.loads(command("submit", root, "--problems", tmp_path / "out" / "problems.csv", code=0))["batch"]
        stack.until(lambda: archive.counts(batch).open == 0, 90)
        counts = archive.counts(batch)
        assert (counts.done + counts.referred, counts.quarantined) == (6, 1)
        assert set(counts.reasons) >= {"truncated", "empty_file", "not_an_image", "symlink", "missing_image"}

        # If the database refuses a verdict in words that quote it
        refuse.begin("result")
        (root / "late.jpg").write_bytes(draw(77))
        late = json.loads(command("submit", root, code=0))["batch"]
        stack.until(lambda: "task failed" in stack.log("w1"))
        stack.until(lambda: any(task["state"] == "FAILURE" for task in flower.tasks().values()))
        refuse.end()

        # If commands fail and crash, and others succeed
        refuse.begin("item")
        (root / "later.jpg").write_bytes(draw(78))
        command("submit", root, code=2)
        refuse.end()
        refuse.begin("audit")
        command("pause", late, code=2)
        refuse.end()
        command("verify", late, code=70, before=BUG)
        command("submit", tmp_path / CANARY, code=2)
        command("status", batch, "--json", code=0)
        command("verify", batch, "--json", code=0)
        for kind in ("csv", "isic"):
            command("export", batch, "--format", kind, "--out", tmp_path / "out" / kind, code=0)
        command("dicom", batch, "--out", tmp_path / "out" / "dicom", code=0)

        # Then no page, no key, no file of Redis, nothing on the wire, no log and no output has it
        seen: list[tuple[str, bytes | str]] = [*pages_of(flower), *redis_keys(redis_server), ("the wire", wire.heard)]
    seen += [*redis_files(redis_server), *files_below(stack.folder), *command.said]
    assert len(seen) > 40
    assert b"PUBLISH" in wire.heard
    assert places(seen) == []

    # And the ledger has it, and what the user asked for
    assert sum(map(is_in, filter(None, archive.states(batch)))) > 10
    for name in ("problems.csv", "csv", "isic"):
        assert is_in((tmp_path / "out" / name).read_bytes())
    reports = list(files_below(tmp_path / "out" / "dicom"))
    assert [is_in(content) for _, content in reports] == [True, True]
    # And notes about an export say nothing of it
    assert places((path.name, path.read_bytes()) for path in (tmp_path / "out").glob("*.json")) == []


def test_one_machines_stack_keeps_it_to_its_ledger(tmp_path: Path) -> None:
    # Given an archive full of it
    plant(tmp_path / CANARY)
    home = tmp_path / "home"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))}
    command = Commands(
        environment=inherited
        | {
            "LESION_SCREEN_HOME": str(home),
            "WORKER_CLASSIFIER": "light_classifier:LightClassifier",
            "PYTHONPATH": f"{LIGHT}{os.pathsep}{ROOT}",
        }
    )

    # If it is screened with a private Redis
    command("run", tmp_path / CANARY, "--json", code=1)

    # Then logs, Redis's files, and whatever else lies in the home know nothing, but for the ledger
    files = dict(files_below(home))
    assert {"logs/screener-1.log", "logs/feeder.log", "logs/redis.log"} <= set(files)
    assert any(name.startswith("redis/appendonlydir/") for name in files)
    kept = [(name, content) for name, content in files.items() if not name.startswith("ledger.sqlite")]
    assert places([*kept, *command.said]) == []
    assert is_in(files["ledger.sqlite"])
    # And nobody else can read what is there
    assert home.stat().st_mode & 0o077 == 0


def test_the_search_finds_a_name_wherever_it_is_said(archive: Archive, stack: Stack, redis_server: RedisServer) -> None:
    # Given a careless program that sends the name as an argument of a task
    batch = archive.load(archive.draw(1))
    with listen(redis_server) as wire, flower_of(stack) as flower:
        with Celery(broker=redis_server.url, set_as_current=False) as careless:
            careless.send_task(SCREEN_CHUNK, args=({"path": f"{CANARY}.jpg"},), queue="screening")
            assert places(redis_keys(redis_server)) == ["key b'screening'"]

        # If a worker takes it
        stack.start_feeder()
        stack.start_worker()
        stack.until(lambda: archive.counts(batch).open == 0)
        stack.until(lambda: places(pages_of(flower)))

        # Then it is found on the wire, in Flower, and in the files of Redis
        assert any(name.startswith("Flower's /task/") for name in places(pages_of(flower)))
        assert is_in(wire.heard)
    assert any("appendonlydir" in name for name in places(redis_files(redis_server)))
    # And every form of it is known
    assert all(is_in(form) for form in (CANARY, CANARY.upper(), CANARY.encode().hex(), CANARY.encode("utf-16-le")))
