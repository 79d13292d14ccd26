"""Status: how a batch stands, as numbers that add up."""

from dataclasses import asdict, dataclass

from sqlalchemy import Engine

from db.batches import BatchRow, get_batch, latest_batch
from db.counts import Counts, count_items
from db.tables import BatchState
from producer.errors import EXIT_DONE, EXIT_SOME_FAILED, UsageProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a batch stands; `found` is the sum of the five outcomes. The names are those of `--json`."""

    batch: int
    #: Digest of the model that the batch is pinned to.
    model: str
    found: int
    open: int
    done: int
    referred: int
    rejected: int
    quarantined: int
    #: From opening to the last outcome, or to now.
    seconds: float
    #: Scored images a second over all of that time, starting of workers included.
    images_per_second: float

    @property
    def finished(self) -> bool:
        """Whether no item is open."""
        return self.open == 0

    @property
    def exit_code(self) -> int:
        """1 where an image was rejected or quarantined."""
        return EXIT_SOME_FAILED if self.rejected or self.quarantined else EXIT_DONE

    def as_json(self) -> dict[str, int | float | str]:
        """Return what `--json` prints."""
        return asdict(self)


def batch_status(engine: Engine, batch_id: int) -> Status:
    """Count a batch; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        Its status at one moment.

    Raises:
        UnknownBatch: If it is not there.
    """
    return make_status(get_batch(engine, batch_id), count_items(engine, batch_id))


def make_status(batch: BatchRow, counts: Counts) -> Status:
    """Put a status together.

    Args:
        batch: The batch.
        counts: Its counts.

    Returns:
        The status.
    """
    scored = counts.done + counts.referred
    return Status(
        batch=batch.id,
        model=batch.model_digest,
        found=counts.found,
        open=counts.open,
        done=counts.done,
        referred=counts.referred,
        rejected=counts.rejected,
        quarantined=counts.quarantined,
        seconds=round(counts.seconds, 3),
        images_per_second=round(scored / counts.seconds, 2) if counts.seconds > 0 else 0.0,
    )


def find_batch_row(engine: Engine, batch_id: int | None) -> BatchRow:
    """Find the batch that a command means.

    Args:
        engine: The ledger.
        batch_id: As the user gave it; None means the newest.

    Returns:
        The batch.

    Raises:
        UnknownBatch: If it is not there.
        UsageProblem: If the ledger is empty.
    """
    if batch_id is not None:
        return get_batch(engine, batch_id)
    batch = latest_batch(engine)
    if batch is None:
        raise UsageProblem("Nothing was submitted yet; start with `lesion-screen run ARCHIVE`.")
    return batch


def is_waiting(batch: BatchRow) -> bool:
    """Say whether workers may take the batch's chunks.

    Args:
        batch: The batch.

    Returns:
        False where it is loading, paused or cancelled.
    """
    return batch.state == BatchState.OPEN
