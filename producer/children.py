"""Child processes of the one-machine stack: each under a guard, with a log, and started again when it dies."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from producer import guard
from producer.errors import ServiceProblem

#: A child that lived shorter than this, seconds, did not start properly.
_QUICK_DEATH_SECONDS = 30

#: Quick deaths in a row, without progress in between, after which starting again is hopeless.
_MOST_QUICK_DEATHS = 6

#: Seconds before the next start, doubled with each quick death.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0

_LARGEST_LOG = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPlan:
    """What to run."""

    #: Also the name of its log.
    name: str
    command: tuple[str, ...]
    #: Seconds between SIGTERM and SIGKILL.
    grace: float
    #: Held while it runs, so that the last stack's process is gone before this one starts.
    lock: Path | None = None
    #: Whether the others make no sense without it.
    essential: bool = True
    #: Settings of its own; no secrets.
    settings: Mapping[str, str] = field(default_factory=dict)


class Child:
    """One process that is kept running. Call it from one thread.

    Args:
        plan: What to run.
        home: Folder of the one-machine state.
        environment: The child's whole environment; secrets travel here and never in an argument.
    """

    def __init__(self, plan: ChildPlan, home: Path, environment: Mapping[str, str]) -> None:
        self.plan = plan
        self._home = home
        self._environment = {**environment, **plan.settings}
        self._guard: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_again_at = 0.0
        self._quick_deaths = 0
        #: How often it was started.
        self.starts = 0

    def start(self) -> None:
        """Start the process."""
        logs = self._home / "logs"
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        # An empty folder: Celery looks into the current one first, and an archive may hold anything.
        here = self._home / "run"
        here.mkdir(mode=0o700, exist_ok=True)
        log = logs / f"{self.plan.name}.log"
        if log.exists() and log.stat().st_size > _LARGEST_LOG:
            log.replace(log.with_suffix(".log.1"))
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._guard = subprocess.Popen(
                [
                    sys.executable,
                    *("-I", str(Path(guard.__file__).absolute())),
                    *(str(self.plan.grace), str(self.plan.lock or "-")),
                    *("--", *self.plan.command),
                ],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=self._environment,
                cwd=here,
                # Out of reach of the terminal's Ctrl-C: the guard ends when we say so.
                start_new_session=True,
            )
        finally:
            os.close(file)
        self._started_at = time.monotonic()
        self.starts += 1

    @property
    def running(self) -> bool:
        """Whether its guard is there."""
        return self._guard is not None and self._guard.poll() is None

    def keep_running(self) -> None:
        """Start the process again if it died, after a pause that grows.

        Raises:
            ServiceProblem: If it dies right after its start again and again.
        """
        if self.running:
            return
        now = time.monotonic()
        if self._guard is not None:
            self._close_pipe()
            self._guard = None
            self._quick_deaths = self._quick_deaths + 1 if now - self._started_at < _QUICK_DEATH_SECONDS else 0
            if self._quick_deaths >= _MOST_QUICK_DEATHS:
                raise ServiceProblem(
                    f"The process {self.plan.name} ends right after its start each time; "
                    f"see logs/{self.plan.name}.log in the folder LESION_SCREEN_HOME."
                )
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._quick_deaths)
            self._start_again_at = now + pause
        if now >= self._start_again_at:
            self.start()

    def forgive(self) -> None:
        """Forget earlier deaths: work is getting done."""
        self._quick_deaths = 0

    def ask_to_end(self) -> None:
        """Send SIGTERM, and SIGKILL after the grace; does not wait."""
        self._tell(b"t")

    def end_at_once(self) -> None:
        """Kill the process and all of its children; does not wait."""
        self._tell(b"k")

    def _tell(self, what: bytes) -> None:
        if self._guard is not None and self._guard.stdin is not None and not self._guard.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._guard.stdin.fileno(), what)

    def await_end(self) -> None:
        """Wait until it is gone."""
        if self._guard is not None:
            self._guard.wait()
            self._close_pipe()

    def _close_pipe(self) -> None:
        if self._guard is not None and self._guard.stdin is not None and not self._guard.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
