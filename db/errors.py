"""Errors of the ledger, split by who must act.

LedgerError
├── LeaseLost            another worker owns the chunk now: stop, write nothing
├── UnknownBatch         the caller named a batch that is not there
├── UnknownItem          the caller named an item that is not an open one of its chunk
├── UnknownModel         the caller named a model version that is not there
├── UnknownRun           the caller named a training run that is not there
├── WrongBatchState      the batch's state does not allow what was asked
├── WrongRunState        the training run's state does not allow what was asked
├── ModelMismatch        verdicts of another model than the batch's pinned one
├── MissingResult        a verdict was said to be stored already and is not
├── WriteRefused         a constraint of the database refused a row
├── SchemaMismatch       the ledger's schema is not the one this program needs
│   └── EmptyLedger      there is no schema yet
├── NetworkFileSystem    SQLite would lose data on this file system
└── SettingsError        an environment variable is unknown or has no sound value

What the database says about a lost connection, a deadlock or a full disk stays SQLAlchemy's own
exception: see `db.session.is_transient`.
"""

# ruff: noqa: N818 - the names say what happened, as the whole project speaks of it.


class LedgerError(Exception):
    """The ledger could not do what was asked."""


class LeaseLost(LedgerError):
    """The chunk's lease belongs to another attempt now; nothing was written."""


class UnknownBatch(LedgerError):
    """There is no such batch in the ledger.

    Args:
        batch_id: What the caller named.
    """

    def __init__(self, batch_id: int) -> None:
        super().__init__(f"There is no batch {batch_id}; `lesion-screen status` lists those there are.")


class UnknownItem(LedgerError):
    """The item is not an open item of this chunk."""


class UnknownModel(LedgerError):
    """There is no such model version in the ledger.

    Args:
        what: What was found instead, as in "There are several model versions whose digest begins with abcdef".
    """

    def __init__(self, what: str = "There is no model version with this digest") -> None:
        super().__init__(f"{what}; `lesion-screen models list` lists those there are.")


class UnknownRun(LedgerError):
    """There is no such training run in the ledger.

    Args:
        run_id: What the caller named.
    """

    def __init__(self, run_id: int) -> None:
        super().__init__(f"There is no training run {run_id}; `lesion-screen runs list` lists those there are.")


class WrongRunState(LedgerError):
    """The training run's state does not allow what was asked for."""


class WrongBatchState(LedgerError):
    """The batch's state does not allow this."""


class ModelMismatch(LedgerError):
    """The verdicts come from another model than the one the batch is pinned to."""


class MissingResult(LedgerError):
    """A verdict that should be stored already is not in the ledger."""


class WriteRefused(LedgerError):
    """The database refused a row; only the constraint is named, never the row's values."""


class SchemaMismatch(LedgerError):
    """The ledger's schema is not the one this program needs."""


class EmptyLedger(SchemaMismatch):
    """The ledger has no schema yet."""


class NetworkFileSystem(LedgerError):
    """A SQLite ledger on a network file system would be damaged sooner or later."""


class SettingsError(LedgerError):
    """An environment variable is not a known setting, or has no sound value."""
