"""The log of a training run: what happened, line by line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from db.clock import clock
from db.session import read
from db.tables import RunEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """A line of a run's log."""

    #: Seconds since 1970.
    at: float
    kind: str
    data: Mapping[str, Any]


def note_event(connection: Connection, run_id: int, kind: str, data: Mapping[str, Any] | None = None) -> None:
    """Add a line to a run's log, in the caller's transaction.

    Args:
        connection: A connection inside the caller's transaction.
        run_id: The run.
        kind: One word.
        data: What happened, as JSON; nothing about a patient.
    """
    connection.execute(insert(RunEvent).values(run_id=run_id, at=clock(), kind=kind, data=dict(data or {})))


def list_events(engine: Engine, run_id: int, *, after: int = 0) -> list[EventRow]:
    """Read a run's log; reads only.

    Args:
        engine: The ledger.
        run_id: The run.
        after: Leave out so many lines from its beginning.

    Returns:
        Its lines, oldest first.
    """
    columns = select(RunEvent.at, RunEvent.kind, RunEvent.data).where(RunEvent.run_id == run_id)
    with read(engine) as connection:
        return [EventRow(**row) for row in connection.execute(columns.order_by(RunEvent.id).offset(after)).mappings()]
