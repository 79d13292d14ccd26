"""Health checks: `python -m worker.health worker` says whether a part does its work, and exits with 0 or 1.

Parts are `worker`, `training`, `feeder`, `beat` and `flower`.
"""

import argparse
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine

from db.errors import LedgerError
from db.liveness import feeder_is_alive, lease_is_alive, run_is_alive, work_waits
from db.models import active_model
from db.session import TRANSIENT_ERRORS, check_revision, open_ledger
from db.settings import DbSettings, HomeSettings, read_settings
from worker.errors import WorkerError
from worker.monitor import MonitorSettings
from worker.settings import WorkerSettings
from worker.vitals import Vitals, read_vitals

#: Work that waits for so long reaches a worker that is idle, or something between them is broken, seconds.
_DEAF_SECONDS: Final = 300
_FLOWER_SECONDS: Final = 5
_OK: Final = 200


class Unhealthy(WorkerError):  # noqa: N818 - says what is the case
    """The part does not do its work; the message says what to look at."""


def check_worker(engine: Engine, settings: WorkerSettings, node: str) -> str:
    """Check a screening worker.

    Args:
        engine: The ledger.
        settings: The worker's.
        node: Its Celery node's name.

    Returns:
        What it does.

    Raises:
        Unhealthy: If it is not up, has no model, does not get on, or hears of no work.
    """
    vitals = _living(node)
    active = active_model(engine)
    if active is not None and not vitals.models:
        raise Unhealthy("The active model could not be loaded: see the worker's log, and `lesion-screen models list`.")
    age = time.time() - vitals.since
    if vitals.busy:
        if vitals.leased and age > settings.lease_seconds and not lease_is_alive(engine, f"{node}/{vitals.pid}"):
            raise Unhealthy("The worker does not get on with its chunk, whose lease has run out: see its log.")
        return f"works on a chunk, on the {vitals.device or 'cpu'}"
    may_begin = settings.is_in_window(datetime.now(UTC))
    if age > _DEAF_SECONDS and may_begin and work_waits(engine, _DEAF_SECONDS):
        raise Unhealthy("Work waits and none has reached this worker for minutes: look at the feeder and at Redis.")
    return "idle"


def check_training(engine: Engine, settings: WorkerSettings, node: str) -> str:
    """Check a training worker.

    Args:
        engine: The ledger.
        settings: The worker's.
        node: Its Celery node's name.

    Returns:
        What it does.

    Raises:
        Unhealthy: If it is not up, or does not get on.
    """
    vitals = _living(node)
    if not vitals.busy:
        return "idle"
    if time.time() - vitals.since > settings.run_lease_seconds and not run_is_alive(engine, settings.run_lease_seconds):
        raise Unhealthy("The training worker does not get on with its run: see its log.")
    return "works on a run"


def _living(node: str) -> Vitals:
    vitals = read_vitals(node)
    if vitals is None:
        raise Unhealthy(f"No pool child of {node} has come up yet: see the worker's log.")
    try:
        os.kill(vitals.pid, 0)
    except ProcessLookupError:
        raise Unhealthy(f"The pool child of {node} has died: see the worker's log.") from None
    return vitals


def check_feeder(engine: Engine, _settings: WorkerSettings, _node: str) -> str:
    """Check that some feeder feeds.

    Args:
        engine: The ledger.

    Returns:
        What it does.

    Raises:
        Unhealthy: If none does.
    """
    if not feeder_is_alive(engine):
        raise Unhealthy("No feeder has been heard of: see its log, and whether it reaches the ledger.")
    return "feeds"


def check_beat(settings: WorkerSettings) -> str:
    """Check that whatever beat asks for can reach Redis.

    Args:
        settings: The address of Redis.

    Returns:
        What it does.

    Raises:
        Unhealthy: If it cannot.
    """
    if settings.broker_url is None:
        raise Unhealthy("WORKER_BROKER_URL is not set.")
    try:
        with closing(Redis.from_url(settings.broker_url.get_secret_value(), socket_timeout=5)) as client:
            client.ping()
    except (RedisError, ValueError) as error:
        raise Unhealthy(f"Redis does not answer ({type(error).__name__}).") from None
    return "waits for its hour"


def check_flower(_settings: WorkerSettings) -> str:
    """Check that Flower answers.

    Returns:
        What it does.

    Raises:
        Unhealthy: If it does not.
    """
    address = f"http://127.0.0.1:{read_settings(MonitorSettings).port}/healthcheck"
    try:
        with urllib.request.urlopen(address, timeout=_FLOWER_SECONDS) as answer:
            if answer.status == _OK:
                return "answers"
    except OSError:
        pass
    raise Unhealthy("Flower does not answer: see its log.")


_WITH_LEDGER: Final[dict[str, Callable[[Engine, WorkerSettings, str], str]]] = {
    "worker": check_worker,
    "training": check_training,
    "feeder": check_feeder,
}
_WITHOUT: Final[dict[str, Callable[[WorkerSettings], str]]] = {"beat": check_beat, "flower": check_flower}


def main() -> int:
    """Check the part that the command line names.

    Returns:
        0 where it does its work, otherwise 1.
    """
    parser = argparse.ArgumentParser(prog="python -m worker.health", description="Say whether a part does its work.")
    parser.add_argument("part", choices=(*_WITH_LEDGER, *_WITHOUT))
    parser.add_argument("--node", default=f"celery@{socket.gethostname()}", help="name of the Celery node")
    given = parser.parse_args()
    try:
        settings = read_settings(WorkerSettings)
        if given.part in _WITHOUT:
            found = _WITHOUT[given.part](settings)
        else:
            engine = open_ledger(read_settings(DbSettings).ledger_url(read_settings(HomeSettings)))
            check_revision(engine)
            found = _WITH_LEDGER[given.part](engine, settings, given.node)
        sys.stdout.write(f"{given.part} {found}\n")
    except (LedgerError, WorkerError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    except TRANSIENT_ERRORS as error:
        sys.stdout.write(f"The ledger does not answer ({type(error).__name__}).\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
