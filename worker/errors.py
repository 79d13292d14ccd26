"""Errors of the worker, split by who must act.

WorkerError
├── BrokerUnavailable    Redis does not answer or is full: transient, the feeder rings later
├── ShelfUnavailable     object storage does not list what was drawn: transient
├── PacsUnavailable      a PACS does not answer, or is in trouble: transient
├── PacsRefuses          a PACS does not let us store: an operator must look
├── ModelUnavailable     a model is not in the artifact store or was refused: an operator must look
└── TaskFailed           a bug, named by its type alone: the lease runs out and it is tried again
"""

# ruff: noqa: N818 - the names say what happened, as the whole project speaks of it.


class WorkerError(Exception):
    """Root of the worker's own errors."""


class BrokerUnavailable(WorkerError):
    """The broker does not answer, refuses the password or is full; its address is never in the text."""


class ShelfUnavailable(WorkerError):
    """The artifact store on object storage does not answer, or refuses the credentials."""


class PacsUnavailable(WorkerError):
    """The PACS does not answer, or is in trouble; its address is never in the text."""


class PacsRefuses(WorkerError):
    """The PACS does not let us store anything."""


class ModelUnavailable(WorkerError):
    """The pinned model cannot be loaded, so that no item of the chunk can be scored; the text names its digest."""


class TaskFailed(WorkerError):
    """Stands for an unexpected exception towards Celery, whose events carry exception texts to Flower."""
