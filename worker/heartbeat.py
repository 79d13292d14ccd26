"""The heartbeat: a thread that extends a lease as long as there is progress."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import structlog
from sqlalchemy import Engine

from db.chunks import Claim, extend_lease
from db.errors import LeaseLost
from db.session import TRANSIENT_ERRORS, is_transient
from worker.settings import WorkerSettings

#: After a failure the lease is short of time, so the next try comes soon, seconds.
_SOON: Final = 1.0

_log = structlog.get_logger()


class Heartbeat:
    """Keeps a lease while the work gets on; to be used in a `with` statement.

    Args:
        extend: Extends the lease; raises `LeaseLost` where it is gone.
        every: Seconds between two beats.
        stall: Without progress for so many seconds the lease is let run out.
        attempt: The claim's attempt, for the logs, as the next two are.
        chunk: The chunk that is held.
        run: The training run that is held.
    """

    def __init__(
        self,
        extend: Callable[[], None],
        *,
        every: float,
        stall: float,
        attempt: int,
        chunk: int | None = None,
        run: int | None = None,
    ) -> None:
        self._extend = extend
        self._every, self._stall = every, stall
        self._attempt, self._chunk, self._run = attempt, chunk, run
        self._stop = threading.Event()
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._lost: LeaseLost | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        # A beat that hangs in the database must not hold the work's end; a late one meets the fence.
        self._thread.join(timeout=_SOON)

    @property
    def lost(self) -> bool:
        """Whether another worker has the work, or it was cancelled."""
        return self._lost is not None

    def note_progress(self) -> None:
        """Say that something was done; any thread may call it."""
        self._progress = time.monotonic()

    def check(self) -> None:
        """Stop the caller where the lease is gone.

        Raises:
            LeaseLost: If a beat found that another attempt owns the work.
        """
        if self._lost is not None:
            raise LeaseLost(*self._lost.args)

    def _beat(self) -> None:
        pause = self._every
        while not self._stop.wait(pause):
            pause = self._every
            if time.monotonic() - self._progress > self._stall:
                # A worker that hangs must look dead to the others.
                _log.error("lease not extended", chunk=self._chunk, run=self._run, attempt=self._attempt)
                continue
            try:
                self._extend()
            except LeaseLost as error:
                self._lost = error
                return
            except TRANSIENT_ERRORS as error:
                if not is_transient(error):
                    raise
                pause = min(_SOON, pause)


def chunk_heartbeat(engine: Engine, claim: Claim, settings: WorkerSettings) -> Heartbeat:
    """Make the heartbeat of a chunk that was claimed.

    Args:
        engine: The ledger.
        claim: The chunk.
        settings: Lease, heartbeat and stall times.

    Returns:
        The heartbeat, to be used in a `with` statement.
    """
    return Heartbeat(
        lambda: extend_lease(engine, claim.chunk_id, claim.attempt, lease_seconds=settings.lease_seconds),
        every=settings.heartbeat_seconds,
        stall=settings.stall_seconds,
        chunk=claim.chunk_id,
        attempt=claim.attempt,
    )
