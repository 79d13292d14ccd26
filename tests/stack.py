"""The stack as tests run it: workers and feeders as child processes, with a classifier that needs no TensorFlow."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from tests.servers import await_that, die_with_parent

ROOT: Final = Path(__file__).parents[1]

#: Where `light_classifier` lies.
LIGHT: Final = ROOT / "tests"

#: Short times, so that a test of a killed worker takes seconds.
SHORT_TIMES: Final = {
    "WORKER_LEASE_SECONDS": "3",
    "WORKER_RUN_LEASE_SECONDS": "8",
    "WORKER_HEARTBEAT_SECONDS": "0.5",
    "WORKER_QUIET_SECONDS": "2",
    "WORKER_FEEDER_INTERVAL": "0.2",
}


@dataclass(slots=True, kw_only=True)
class Stack:
    """Real workers and a real feeder on one Redis and one ledger, with the light classifier."""

    environment: dict[str, str]
    folder: Path
    until = staticmethod(await_that)
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @classmethod
    def prepare(cls, folder: Path, *, ledger_url: str, redis_url: str, settings: Mapping[str, str]) -> Self:
        """Make a folder for the logs, and the environment of what will be started."""
        folder.mkdir()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))}
        inherited.pop("REMAP_SIGTERM", None)
        environment = inherited | {
            "DB_URL": ledger_url,
            "LESION_SCREEN_HOME": str(folder.parent / "home"),
            "WORKER_BROKER_URL": redis_url,
            "WORKER_CLASSIFIER": "light_classifier:LightClassifier",
            "PYTHONPATH": str(LIGHT),
        }
        return cls(environment=environment | dict(settings), folder=folder)

    def start_worker(
        self, name: str = "w1", *, queue: str = "screening,rendering", **settings: str
    ) -> "subprocess.Popen[bytes]":
        """Start a worker as the Makefile does."""
        arguments = ["-m", "celery", "-A", "worker.app", "--quiet", "worker", "-Q", queue, "-c", "1"]
        return self._start([*arguments, "--hostname", f"{name}@test", "--loglevel", "WARNING"], name, settings)

    def start_feeder(self, **settings: str) -> "subprocess.Popen[bytes]":
        """Start a feeder."""
        return self._start(["-m", "worker.feeder"], "feeder", settings)

    def start_beat(self, name: str, **settings: str) -> "subprocess.Popen[bytes]":
        """Start a beat as the Makefile does."""
        return self._start(["-m", "celery", "-A", "worker.app", "--quiet", "beat"], name, settings)

    def start_flower(self, **settings: str) -> "subprocess.Popen[bytes]":
        """Start Flower as compose does."""
        return self._start(["-m", "worker.monitor"], "flower", settings)

    def _start(self, arguments: list[str], name: str, settings: dict[str, str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment | settings,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - a killed pytest must leave no worker
            )
        self.running.append(process)
        return process

    def command(self, *arguments: object, code: int = 0, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run a `lesion-screen` command to its end, and fail where it ends with another code."""
        done = subprocess.run(
            [sys.executable, "-c", "from producer.cli import main; main()", *map(str, arguments)],
            env=self.environment | settings,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    def register_model(self) -> "subprocess.CompletedProcess[str]":
        """Install and register the shipped model, as an operator does."""
        return subprocess.run(
            [sys.executable, "-m", "worker.register"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def hold(self) -> dict[str, str]:
        """Make the settings of a worker that stops in the middle of its first chunk, one batch of it recorded."""
        (self.folder / "hold").touch()
        return {"LIGHT_HOLD": str(self.folder / "hold"), "WORKER_RECORD_SECONDS": "0.001"}

    def let_go(self) -> None:
        """Let what is held go on."""
        (self.folder / "hold").unlink()

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
