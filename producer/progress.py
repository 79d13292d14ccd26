"""Progress: waits for a batch and shows how it goes."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from rich.console import Console
from sqlalchemy import Engine

from db.batches import BatchRow, get_batch
from db.session import TRANSIENT_ERRORS, is_transient
from producer.meter import Meter
from producer.status import Status, batch_status, is_waiting

#: Seconds between two looks at the ledger.
_LOOK_SECONDS = 0.5

#: A ledger that is away is asked again after so many seconds.
AWAY_SECONDS = 2.0

#: Nothing recorded for so long after the start: perhaps nobody listens.
LISTEN_SECONDS = 30.0

#: What is said then where workers are others' business, and where they were started here.
NOBODY_LISTENS: Final = (
    "No worker has recorded anything yet. If none is running, start one with `make worker` where WORKER_BROKER_URL and "
    "DB_URL are set, or run again with --workers 1."
)
STILL_STARTING: Final = (
    "The workers that were started here have recorded nothing yet: each loads TensorFlow and the model first, which "
    "takes a minute on a busy machine. If it stays so, see `logs` in the folder LESION_SCREEN_HOME."
)


class ProgressBar(Meter):
    """A batch's progress on standard error, with images a second, time left and counts per outcome.

    Args:
        console: Where to; a quiet one shows nothing.
        total: Items of the batch.
    """

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, "", "images", total)

    def show_status(self, status: Status) -> None:
        """Show a status.

        Args:
            status: The newest.
        """
        counts = {"done": status.done, "referred": status.referred}
        counts |= {"rejected": status.rejected, "quarantined": status.quarantined}
        self.show(status.found - status.open, total=status.found, outcomes=count_outcomes(counts))


def count_outcomes(counts: Mapping[str, int]) -> str:
    """Put counts by outcome into words.

    Args:
        counts: Outcome to count; those of none are left out, but for `done`.

    Returns:
        For example "90 done, 3 referred".
    """
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "done")


def await_batch(
    engine: Engine,
    batch_id: int,
    *,
    keep_running: Callable[[], None],
    on_status: Callable[[Status], None],
    on_progress: Callable[[], None] = lambda: None,
    on_trouble: Callable[[str], None] = lambda _sentence: None,
    unheard: str = NOBODY_LISTENS,
) -> tuple[BatchRow, Status]:
    """Wait until no item is open, or the batch is paused or cancelled. A ledger that is away is waited for.

    Args:
        engine: The ledger.
        batch_id: The batch.
        keep_running: Called at every look.
        on_status: Told every status.
        on_progress: Called when items were recorded since the last look.
        on_trouble: Told what a person should know, each thing once.
        unheard: What to tell where nothing was recorded for a while after the start.

    Returns:
        The batch and its last status.
    """
    began, ended_before, listened, away = time.monotonic(), -1, False, False
    while True:
        keep_running()
        try:
            batch, status = get_batch(engine, batch_id), batch_status(engine, batch_id)
        except TRANSIENT_ERRORS as error:
            if not is_transient(error):
                raise
            if not away:
                on_trouble("The ledger does not answer; waiting for it. Nothing is lost.")
            away = True
            time.sleep(AWAY_SECONDS)
            continue
        on_status(status)
        if status.finished or not is_waiting(batch):
            return batch, status
        ended = status.found - status.open
        if ended_before >= 0 and ended != ended_before:
            listened = True
            on_progress()
        ended_before = ended
        if not listened and time.monotonic() - began > LISTEN_SECONDS:
            listened = True
            on_trouble(unheard)
        time.sleep(_LOOK_SECONDS)
