"""One machine's services that stay up: `lesion-screen up`, `down`, and `serve`, which runs them in the foreground."""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import Engine

from db.errors import SettingsError
from db.session import TRANSIENT_ERRORS
from db.settings import read_settings
from producer.children import ChildPlan
from producer.errors import EXIT_DONE, ServiceProblem, UsageProblem
from producer.ledger import Place, open_prepared, read_place
from producer.local import SERVICES_LOCK, LocalStack, child_environment, is_stack_running
from producer.terminal import open_console, say_doing
from worker.errors import WorkerError
from worker.health import check_feeder, check_flower, check_training, check_worker
from worker.monitor import MonitorSettings

_LOGIN: Final = "flower_basic_auth"
_LOGIN_SETTING: Final = "FLOWER_BASIC_AUTH"
_PASSWORD_BYTES: Final = 18

#: TensorFlow and a model take half a minute on a slow disk.
_UP_SECONDS: Final = 180
#: Flower loads no model.
_FLOWER_UP_SECONDS: Final = 60
#: A worker may take 40 s to give its chunk back.
_DOWN_SECONDS: Final = 90
#: What a health check raises.
_UNWELL: Final[tuple[type[Exception], ...]] = (WorkerError, *TRANSIENT_ERRORS)
_LOOK_SECONDS: Final = 0.5
_GRACE: Final = 10.0


def serve(*, workers: int) -> int:
    """Do `lesion-screen serve`: run the services until SIGTERM or SIGINT.

    Args:
        workers: Screening workers.

    Returns:
        The exit code, which is that of success after either signal.

    Raises:
        UsageProblem: If they are up already.
        ServiceProblem: If a part that the others need does not stay up.
    """
    place = _place_of_one_machine()
    try:
        open_prepared(place, register=True)[0].dispose()
        _provide_login(place.home)
        _run_services(place, workers)
    except KeyboardInterrupt:
        # It runs until then: systemd would take the code of a command that was interrupted for a failure.
        open_console().print("Stopped. Nothing is lost: `lesion-screen serve` goes on where it was.", highlight=False)
    return EXIT_DONE


def _run_services(place: Place, workers: int) -> None:
    with (
        _holding(place.home),
        LocalStack(place.home, workers=workers, training=True, more=_plans(place)) as stack,
    ):
        while True:
            time.sleep(_LOOK_SECONDS)
            stack.keep_running()


def up(*, workers: int) -> int:
    """Do `lesion-screen up`: start the services in the background, and wait until all are well.

    Args:
        workers: Screening workers.

    Returns:
        The exit code.

    Raises:
        UsageProblem: If they are up already.
        ServiceProblem: If a part does not come up.
    """
    place, console = _place_of_one_machine(), open_console()
    if is_stack_running(place.home, services=True):
        raise UsageProblem("The services are up already; `lesion-screen down` stops them.")
    _provide_login(place.home)
    _insist_on_port()
    # Here, where a mistake can still be told: the background has no terminal.
    engine, _ = open_prepared(place, register=True)
    logs = place.home / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    file = os.open(logs / "serve.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    command = [sys.executable, "-m", "producer.cli", "serve", "--workers", str(workers)]
    server = subprocess.Popen(
        command,
        env=child_environment(place.home, os.environ),
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        start_new_session=True,
    )
    os.close(file)
    with say_doing(console, "Starting") as say:
        for name, check in _checks(place, engine, workers).items():
            say(name)
            _await_health(name, check, server, _FLOWER_UP_SECONDS if name == "flower" else _UP_SECONDS)
    beat = "beat" if place.worker_settings.retrain_cron else "no beat (WORKER_RETRAIN_CRON is not set)"
    console.print(f"Up: {workers} screening, 1 training worker, feeder, Redis, Flower, {beat}.", highlight=False)
    console.print(
        f"Flower: http://127.0.0.1:{read_settings(MonitorSettings).port}, with the login in {place.home / _LOGIN}",
        soft_wrap=True,
    )
    console.print(f"Logs: {logs}", soft_wrap=True)
    console.print("`lesion-screen submit ARCHIVE` has an archive screened, `lesion-screen down` stops everything.")
    return EXIT_DONE


def down() -> int:
    """Do `lesion-screen down`: stop the services; what workers hold is recorded and given back.

    Returns:
        The exit code.

    Raises:
        ServiceProblem: If they do not end.
    """
    place, console = _place_of_one_machine(), open_console()
    if not is_stack_running(place.home, services=True):
        console.print("Nothing is up.")
        return EXIT_DONE
    os.kill(int((place.home / SERVICES_LOCK).read_text(encoding="ascii")), signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_SECONDS
    with say_doing(console, "Stopping"):
        while is_stack_running(place.home, services=True):
            if time.monotonic() > deadline:
                raise ServiceProblem("The services do not end; see logs/serve.log in the folder LESION_SCREEN_HOME.")
            time.sleep(_LOOK_SECONDS)
    console.print("Down. Nothing is lost: `lesion-screen up` goes on where it was.")
    return EXIT_DONE


def _place_of_one_machine() -> Place:
    place = read_place()
    if place.broker_url is not None:
        raise UsageProblem(
            "WORKER_BROKER_URL is set: these commands run one machine with a Redis of its own. Unset it, or start the "
            "parts of a cluster one by one, as the README says under Many machines."
        )
    place.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _plans(place: Place) -> list[ChildPlan]:
    # Screening goes on without them, when Flower's port is taken, say.
    monitor = (sys.executable, "-m", "worker.monitor")
    plans = [ChildPlan(name="flower", command=monitor, grace=_GRACE, essential=False)]
    if place.worker_settings.retrain_cron:
        beat = (sys.executable, "-m", "celery", "-A", "worker.app", "beat", "--loglevel", "WARNING")
        plans.append(ChildPlan(name="beat", command=beat, grace=_GRACE, essential=False))
    return plans


def _checks(place: Place, engine: Engine, workers: int) -> dict[str, Callable[[], object]]:
    given, host = place.worker_settings, socket.gethostname()
    checks: dict[str, Callable[[], object]] = {"feeder": partial(check_feeder, engine, given, "")}
    for number in range(1, workers + 1):
        checks[f"screener-{number}"] = partial(check_worker, engine, given, f"screener-{number}@{host}")
    checks["trainer"] = partial(check_training, engine, given, f"trainer@{host}")
    checks["flower"] = partial(check_flower, given)
    return checks


def _await_health(name: str, check: Callable[[], object], server: "subprocess.Popen[bytes]", seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            check()
        except _UNWELL as error:
            if server.poll() is not None:
                raise ServiceProblem(
                    "The services ended right after their start; see logs/serve.log in the folder LESION_SCREEN_HOME."
                ) from error
            if time.monotonic() > deadline:
                raise ServiceProblem(f"{name} does not come up, the others run: {error}") from error
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _insist_on_port() -> None:
    settings = read_settings(MonitorSettings)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.address, settings.port))
        except OSError as error:
            raise UsageProblem(
                f"Flower cannot have port {settings.port} of {settings.address} ({error.strerror}): set FLOWER_PORT."
            ) from None


def _provide_login(home: Path) -> None:
    """Take Flower's login from the settings, or else from the home, where it is drawn once."""
    try:
        read_settings(MonitorSettings)
    except SettingsError:
        if _LOGIN_SETTING in os.environ:
            raise
    else:
        return
    path = home / _LOGIN
    if not path.exists():
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w", encoding="ascii") as login:
            login.write(f"operator:{secrets.token_urlsafe(_PASSWORD_BYTES)}")
    # For this process and its children.
    os.environ[_LOGIN_SETTING] = path.read_text(encoding="ascii").strip()


@contextmanager
def _holding(home: Path) -> Iterator[None]:
    file = os.open(home / SERVICES_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageProblem("The services are up already; `lesion-screen down` stops them.") from None
        os.truncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield
    finally:
        os.close(file)
