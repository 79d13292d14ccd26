"""Every command and health check of docker-compose.yml, word for word, as processes of this machine."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model.synthetic import synthesize_archive
from tests.compose import read_services
from tests.servers import await_that, die_with_parent, find_port, redis_binary
from tests.stack import ROOT
from worker.secrets import make_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Without a GPU, and without what only its own image can start.
STAYING = ("feeder", "worker-cpu", "worker-training-cpu", "beat", "flower")


@dataclass(slots=True, kw_only=True)
class Composed:
    """The file's services on this machine: its paths, ports and secrets instead of the containers'."""

    folder: Path
    services: dict[str, dict[str, Any]]
    secrets: Path
    redis_port: int
    extra: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        """The service's own environment, its own temporary folder, and the secrets that it mounts and no other."""
        service, own = self.services[name], self.folder / name
        mounted = own / "secrets"
        if not own.exists():
            mounted.mkdir(parents=True)
            (own / "tmp").mkdir()
            for secret in service.get("secrets", []):
                shutil.copy(self.secrets / secret, mounted / secret)
        given = {key: str(value) for key, value in service.get("environment", {}).items()}
        path = f"{Path(sys.executable).parent}:{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        here = {"LESION_SCREEN_HOME": str(self.folder / "home"), "CREDENTIALS_DIRECTORY": str(mounted)}
        return given | here | {"PATH": path, "TMPDIR": str(own / "tmp"), "HOME": str(own / "tmp")} | self.extra

    def here(self, name: str, words: list[str]) -> list[str]:
        """A command with this machine's paths and port."""
        own = self.folder / name
        ours = {
            "/run/secrets": str(own / "secrets"),
            "/etc/redis-users.acl": str(ROOT / "worker" / "redis-users.acl"),
            "> /tmp/users.acl": f"> {own / 'tmp'}/users.acl",
            "--aclfile /tmp/users.acl": f"--aclfile {own / 'tmp'}/users.acl",
            "redis-cli": f"redis-cli -p {self.redis_port}",
        }
        theirs = re.compile("|".join(map(re.escape, ours)))
        return [theirs.sub(lambda found: ours[found[0]], word) for word in words]

    def start(self, name: str, *more: str) -> None:
        """Start a service that stays."""
        environment = self.environment(name)
        command = self.here(name, self.services[name]["command"])
        if more:
            command[-1] = command[-1].rstrip() + " " + " ".join(more)
        with (self.folder / name / "log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - a killed pytest must leave nothing
            )

    def run(self, name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Run something in a service to its end."""
        environment, command = self.environment(name), self.here(name, words)
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    def is_healthy(self, name: str) -> bool:
        """Ask its health check."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        return self.run(name, words if kind == "CMD" else ["sh", "-c", *words]).returncode == 0


@pytest.fixture
def composed(postgres_url: str, tmp_path: Path) -> Iterator[Composed]:
    services = read_services({"ARCHIVE": str(tmp_path / "archive")})["services"]
    secrets, port = tmp_path / "secrets", find_port()
    make_secrets(secrets)
    broker = (secrets / "worker_broker_url").read_text(encoding="utf-8").replace("redis:6379", f"127.0.0.1:{port}")
    for name, content in {"db_url": postgres_url, "worker_broker_url": broker}.items():
        (secrets / name).unlink()
        (secrets / name).write_text(content, encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(redis_binary())
    extra = {"FLOWER_PORT": str(find_port()), "TF_CPP_MIN_LOG_LEVEL": "3", "WORKER_ENGINE": "tensorflow"}
    given = Composed(folder=tmp_path, services=services, secrets=secrets, redis_port=port, extra=extra)
    (tmp_path / "data").mkdir()
    try:
        given.start("redis", f"--port {port} --bind 127.0.0.1 --dir {tmp_path / 'data'}")
        yield given
    finally:
        for process in given.running.values():
            process.kill()
            process.wait()


def test_the_services_screen_an_archive_are_well_and_end_in_time(composed: Composed, tmp_path: Path) -> None:
    # Given the one-shot that prepares the ledger, and an archive
    if shutil.which("redis-cli"):
        await_that(lambda: composed.is_healthy("redis"))
    synthesize_archive(tmp_path / "archive", images=24, broken=2, seed=3)
    migrated = composed.run("migrate", composed.services["migrate"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    assert not composed.is_healthy("feeder")

    # If everything is started, then every part says that it is well
    for name in STAYING:
        composed.start(name)
    for name in STAYING:
        await_that(partial(composed.is_healthy, name), 120)

    # And what the producer submits is screened
    producer = composed.services["producer"]
    submitted = composed.run("producer", [*producer["entrypoint"], "submit", str(tmp_path / "archive")])
    assert submitted.returncode == 0, submitted.stderr

    def status() -> dict[str, Any]:
        return dict(json.loads(composed.run("producer", [*producer["entrypoint"], "status", "--json"]).stdout))

    await_that(lambda: status()["open"] == 0, 120)
    counts = status()
    assert counts["found"] == counts["done"] + counts["referred"] + counts["rejected"]
    assert counts["rejected"] >= 2

    # And told to stop, each ends within its grace and has written no traceback
    for name in STAYING:
        composed.running[name].terminate()
    for name in STAYING:
        composed.running[name].wait(40)
        assert "Traceback" not in (composed.folder / name / "log").read_text(encoding="utf-8"), name
