"""The heartbeat: a thread that extends a chunk's lease as long as there is progress."""

import threading
import time
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
    """Keeps a lease while the chunk gets on; to be used in a `with` statement.

    Args:
        engine: The ledger.
        claim: The chunk.
        settings: Lease, heartbeat and stall times.
    """

    def __init__(self, engine: Engine, claim: Claim, settings: WorkerSettings) -> None:
        self._engine = engine
        self._claim = claim
        self._settings = settings
        self._stop = threading.Event()
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        #: Another worker has the chunk, or it was cancelled.
        self.lost = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        # A beat that hangs in the database must not hold the chunk's end; a late one meets the fence.
        self._thread.join(timeout=_SOON)

    def note_progress(self) -> None:
        """Say that something was done; any thread may call it."""
        self._progress = time.monotonic()

    def check(self) -> None:
        """Stop the caller where the lease is gone.

        Raises:
            LeaseLost: If a beat found that another attempt owns the chunk.
        """
        if self.lost:
            raise LeaseLost(f"Attempt {self._claim.attempt} does not hold chunk {self._claim.chunk_id} any more.")

    def _beat(self) -> None:
        pause = self._settings.heartbeat_seconds
        while not self._stop.wait(pause):
            pause = self._settings.heartbeat_seconds
            if time.monotonic() - self._progress > self._settings.stall_seconds:
                # A worker that hangs must look dead to the others.
                _log.error("no progress, lease not extended", chunk=self._claim.chunk_id, attempt=self._claim.attempt)
                continue
            try:
                self._extend()
            except LeaseLost:
                self.lost = True
                return
            except TRANSIENT_ERRORS as error:
                if not is_transient(error):
                    raise
                pause = min(_SOON, pause)

    def _extend(self) -> None:
        claim = self._claim
        extend_lease(self._engine, claim.chunk_id, claim.attempt, lease_seconds=self._settings.lease_seconds)
