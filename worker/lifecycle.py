"""The life of a worker: logs, what a pool child opens after the fork, and how it hears that it is to stop.

Nothing here imports TensorFlow or opens the ledger in the parent: `worker.child` is loaded after the fork.
"""

import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog
from celery.signals import (
    celeryd_init,
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
)

from db.settings import read_settings
from worker.contract import TRAINING_QUEUE
from worker.logs import set_up_logs
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.child import Child

#: One byte that parent and children share. Celery tells its children nothing of a shutdown, and a signal to them would
#: interrupt whatever they do.
_STOP: Final = mmap.mmap(-1, 1)

_log = structlog.get_logger()

#: Signals that told this child alone to end while it worked.
_told: Final[list[int]] = []

_child: "Child | None" = None

#: The Celery node's name, set in the parent and inherited by the children.
_node = "worker"

#: Whether this worker listens to the training queue; without a word of its queues it listens to all.
_trains = True


def announce_stop() -> None:
    """Tell every child to give its chunk back after the batch in hand; safe in a signal handler."""
    _STOP[0] = 1


def stopping() -> bool:
    """Say whether the worker, or this child of it, is to stop."""
    return _STOP[0] == 1 or bool(_told)


@contextmanager
def giving_back_first() -> Iterator[None]:
    """Let the task in hand give its work back before a signal ends this child.

    A second SIGTERM within a shutdown, and a task revoked from Flower, make Celery end a busy child by a signal, which
    would cost its chunk the rest of the lease and count as a crash. A child that hangs is ended by SIGKILL all the
    same: Celery's time limit sends it 0.1 s after the first signal.
    """

    def note(number: int, _frame: object) -> None:
        _told.append(number)

    ending = [n for n in (signal.SIGTERM, signal.SIGQUIT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if _told:
            os.kill(os.getpid(), _told[0])


@setup_logging.connect
def log_as_json(**_: Any) -> None:
    """Take logging over: a receiver of this signal keeps Celery from configuring its own."""
    set_up_logs()


@celeryd_init.connect
def begin(sender: str, options: Mapping[str, Any], **_: Any) -> None:
    """Note the node's name and whether it trains, and end a worker that nobody could ring for.

    Args:
        sender: The node's name.
        options: Of the command line.

    Raises:
        SystemExit: If there is no broker to listen to.
    """
    global _node, _trains  # noqa: PLW0603 - one a process
    _node = sender
    _trains = TRAINING_QUEUE in (options.get("queues") or [TRAINING_QUEUE])
    if read_settings(WorkerSettings).broker_url is None:
        sys.stderr.write("WORKER_BROKER_URL is not set: a worker needs the address of Redis.\n")
        raise SystemExit(2)


@worker_ready.connect
def watch_signals(**_: Any) -> None:
    """Hear SIGTERM, SIGQUIT and SIGINT before Celery does: its own handlers may first wait for the children."""
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
        signal.signal(number, _announcing(signal.getsignal(number)))


def _announcing(before: Any) -> Callable[[int, Any], Any]:
    def handle(number: int, frame: Any) -> Any:
        announce_stop()
        return before(number, frame) if callable(before) else None

    return handle


@contextmanager
def showing_life() -> Iterator[None]:
    """Say for the health check that this child works on a message, and that it is idle afterwards."""
    child = current_child()
    child.note_life(busy=True)
    try:
        yield
    finally:
        child.note_life(busy=False)


@worker_process_init.connect
def start_child(**_: Any) -> None:
    """Open what a pool child needs, after the fork and before the first message."""
    from sqlalchemy.exc import SQLAlchemyError

    from db.errors import LedgerError

    set_up_logs()
    try:
        current_child().note_life(busy=False)
    except LedgerError as error:
        # These sentences are about settings and schema, written by us for operators.
        sys.stderr.write(f"{error}\n")
        _log.exception("worker cannot work and stops", pid=os.getpid())
        os.kill(os.getppid(), signal.SIGTERM)
    except SQLAlchemyError:
        # Celery would only log it and go on; the first message tries again.
        _log.exception("database stayed away at the start", pid=os.getpid())


@worker_process_shutdown.connect
def close_child(**_: Any) -> None:
    """Close the ledger when a pool child ends in order."""
    if _child is not None:
        _child.engine.dispose()


def current_child() -> "Child":
    """Return this process's state, opening it at the first call.

    Returns:
        The state.

    Raises:
        LedgerError: If a setting or the schema is not sound.
        sqlalchemy.exc.OperationalError: If the database stayed away.
    """
    global _child  # noqa: PLW0603 - one a process, as the signals that make it are
    if _child is None:
        from model.batches import keep_batches_apart
        from worker.child import Child

        if not _trains:
            keep_batches_apart()
        _child = Child.open(_node, stopping)
    return _child
