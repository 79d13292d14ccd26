"""The feeder: each second it rings for what is open and due, so that the queue is never empty and never deep.

`python -m worker.feeder`
"""

import os
import signal
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy import Engine

from db.chunks import drop_feeder_lease, take_feeder_lease
from db.errors import LedgerError
from db.liveness import running_workers
from db.runs import due_runs
from db.session import TRANSIENT_ERRORS, check_revision, is_transient, open_ledger
from db.settings import DbSettings, HomeSettings, read_settings
from worker.doorbell import Doorbell
from worker.drift import measure_finished
from worker.errors import BrokerUnavailable
from worker.logs import set_up_logs
from worker.patience import pause
from worker.settings import WorkerSettings

#: Another feeder takes over so long after this one was last heard of, seconds. Two at once ring no chunk twice.
_LEASE_SECONDS: Final = 5

_DEPTH_AT_REST: Final = 8
_DEPTH_PER_WORKER: Final = 2

#: Finished batches are looked for so often, seconds; and once more when the feeder ends.
_MEASURE_SECONDS: Final = 5

_USAGE: Final = 2

_log = structlog.get_logger()


def feed_once(engine: Engine, doorbell: Doorbell, settings: WorkerSettings) -> int:
    """Ring for open chunks until the queue is deep enough, for what dead workers held in any case, and for a run.

    Args:
        engine: The ledger.
        doorbell: The broker.
        settings: Depth of the queue, quiet time and window.

    Returns:
        How many chunks were rung.

    Raises:
        BrokerUnavailable: If Redis is away; what was noted as rung is rung again after the quiet time.
    """
    depth = settings.queue_depth or _DEPTH_AT_REST + _DEPTH_PER_WORKER * running_workers(engine)
    # Redis is asked first: while it is away no chunk is noted as rung.
    room = depth - doorbell.queue_depth()
    # A chunk whose worker died has waited for a whole lease: it neither waits for room nor behind a full queue.
    full = room <= 0
    rung = doorbell.ring_open(
        engine,
        limit=depth if full else room,
        quiet_seconds=settings.quiet_seconds,
        expired_only=full,
        least_priority=settings.least_priority(datetime.now(UTC)),
    )
    if rung:
        _log.info("rung", rung=rung, depth=depth)
    for run in due_runs(engine, stale_seconds=settings.run_lease_seconds)[:1]:
        if doorbell.ring_run(run):
            _log.info("rung", run=run)
    return rung


def feed(engine: Engine, doorbell: Doorbell, settings: WorkerSettings, stop: threading.Event) -> None:
    """Feed until told to stop, whatever happens to Redis and the database meanwhile.

    Args:
        engine: The ledger.
        doorbell: The broker.
        settings: Interval, depth and quiet time.
        stop: Set to end at once.

    Raises:
        LedgerError: If the schema is not this program's.
    """
    holder = f"{os.uname().nodename}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    failures, checked, measured = 0, False, 0.0
    while not stop.is_set():
        try:
            if not checked:
                check_revision(engine)
                checked = True
            if take_feeder_lease(engine, holder=holder, lease_seconds=_LEASE_SECONDS):
                feed_once(engine, doorbell, settings)
                if time.monotonic() - measured > _MEASURE_SECONDS:
                    measure_finished(engine)
                    measured = time.monotonic()
            failures = 0
        except BrokerUnavailable:
            failures += 1
            _log.warning("redis is away", attempt=failures)
        except TRANSIENT_ERRORS as error:
            if not is_transient(error):
                raise
            failures += 1
            _log.warning("database is away", attempt=failures, error=type(error).__name__)
        stop.wait(pause(failures) if failures else settings.feeder_interval)
    _hand_over(engine, holder)


def _hand_over(engine: Engine, holder: str) -> None:
    try:
        drop_feeder_lease(engine, holder=holder)
        # On one machine the feeder ends with the batch.
        measure_finished(engine)
    except TRANSIENT_ERRORS as error:
        # The lease runs out by itself, and the next feeder measures.
        _log.warning("database is away", error=type(error).__name__)


def main() -> int:
    """Run the feeder that the environment describes.

    Returns:
        0 after SIGTERM or SIGINT, 2 where a setting or the schema is wrong.
    """
    set_up_logs()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings, database = read_settings(WorkerSettings), read_settings(DbSettings)
        if settings.broker_url is None:
            sys.stderr.write("WORKER_BROKER_URL is not set: the feeder needs the address of Redis.\n")
            return _USAGE
        engine = open_ledger(database.ledger_url(read_settings(HomeSettings)))
        with Doorbell(settings.broker_url.get_secret_value()) as doorbell:
            feed(engine, doorbell, settings, stop)
    except LedgerError as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
