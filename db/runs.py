"""Training runs: queueing one, and the lease under which one worker at a time works on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, insert, or_, select, update

from db.audit import append_entry
from db.clock import clock
from db.errors import LeaseLost, UnknownRun, WrongRunState
from db.session import read, take_lock, write
from db.tables import RunState, TrainingRun

#: A run whose worker was not heard of for so long is another worker's, seconds. An epoch's end may take a while.
STALE_SECONDS: Final = 120

_WAITING: Final = (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A training run as the ledger has it."""

    id: int
    state: RunState
    #: The fence: raised by every claim, and only its holder may write.
    attempt: int
    params: Mapping[str, Any]
    progress: Mapping[str, Any] | None
    #: When its worker was last heard of, seconds since 1970.
    heartbeat: float | None
    model_digest: str | None
    gate: Mapping[str, Any] | None
    created_at: float


def queue_run(engine: Engine, params: Mapping[str, Any], actor: str) -> int:
    """Queue a training run. Not idempotent; its own transaction; audited.

    Args:
        engine: The ledger.
        params: What to train, as JSON; nothing about a patient.
        actor: Who asks.

    Returns:
        The new run's id.
    """
    with write(engine) as connection:
        return _queue(connection, params, actor)


def queue_run_unless_one_waits(engine: Engine, params: Mapping[str, Any], actor: str) -> int | None:
    """Queue a training run where none is queued or running, as a schedule does. Its own transaction; audited.

    Args:
        engine: The ledger.
        params: What to train, as JSON; nothing about a patient.
        actor: Who asks.

    Returns:
        The new run's id, or None: overlapping schedules never start two.
    """
    with write(engine) as connection:
        take_lock(connection, "runs")
        if connection.execute(select(TrainingRun.id).where(TrainingRun.state.in_(_WAITING)).limit(1)).first():
            return None
        return _queue(connection, params, actor)


def _queue(connection: Connection, params: Mapping[str, Any], actor: str) -> int:
    row = insert(TrainingRun).values(state=RunState.QUEUED, params=dict(params), created_at=clock())
    run_id = connection.execute(row.returning(TrainingRun.id)).scalar_one()
    append_entry(connection, actor, "queue_run", f"run {run_id}")
    return run_id


def claim_run(engine: Engine, run_id: int, *, stale_seconds: float = STALE_SECONDS) -> RunRow | None:
    """Take a run, if it is there to be had and no other one is worked on. Not idempotent; its own transaction.

    Args:
        engine: The ledger.
        run_id: The run, as a message named it.
        stale_seconds: A running one whose worker was not heard of for so long may be taken over.

    Returns:
        The run with its new attempt, or None.
    """
    stale = _is_stale(stale_seconds)
    with write(engine) as connection:
        # One at a time: two that train on one machine are both slower than one after the other.
        take_lock(connection, "runs")
        lively = and_(TrainingRun.state == RunState.RUNNING, ~stale)
        if connection.execute(select(TrainingRun.id).where(lively).limit(1)).first():
            return None
        free = or_(TrainingRun.state == RunState.QUEUED, stale)
        taken = update(TrainingRun).where(TrainingRun.id == run_id, free)
        values = {"state": RunState.RUNNING, "attempt": TrainingRun.attempt + 1, "heartbeat": clock()}
        if connection.execute(taken.values(values)).rowcount == 0:
            return None
        return RunRow(**connection.execute(_runs().where(TrainingRun.id == run_id)).mappings().one())


def report_progress(engine: Engine, run_id: int, attempt: int, progress: Mapping[str, Any] | None = None) -> None:
    """Say that a run is worked on, and how far it is. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.
        progress: What to show, as JSON; None leaves what was said last.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    values: dict[str, Any] = {"heartbeat": clock()}
    if progress is not None:
        values["progress"] = dict(progress)
    _write_fenced(engine, run_id, attempt, values)


def finish_run(engine: Engine, run_id: int, attempt: int, *, model_digest: str, gate: Mapping[str, Any] | None) -> None:
    """End a run with its model. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.
        model_digest: The model that came of it.
        gate: What the gate said, as JSON; None where there was nothing to compare with.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    values = {"state": RunState.DONE, "model_digest": model_digest, "gate": None if gate is None else dict(gate)}
    _write_fenced(engine, run_id, attempt, values)


def fail_run(engine: Engine, run_id: int, attempt: int, reason: str) -> None:
    """End a run that cannot be finished, for a reason that trying again cannot cure. Its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.
        reason: A sentence for people; nothing about a patient.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    _write_fenced(engine, run_id, attempt, {"state": RunState.FAILED, "progress": {"reason": reason}})


def _write_fenced(engine: Engine, run_id: int, attempt: int, values: Mapping[str, Any]) -> None:
    mine = (TrainingRun.id == run_id, TrainingRun.attempt == attempt, TrainingRun.state == RunState.RUNNING)
    with write(engine) as connection:
        if connection.execute(update(TrainingRun).where(*mine).values(values)).rowcount == 0:
            raise LeaseLost(f"Attempt {attempt} does not hold training run {run_id} any more.")


def cancel_run(engine: Engine, run_id: int, actor: str) -> bool:
    """Cancel a run; its worker learns of it with its next report. Idempotent; its own transaction; audited.

    Args:
        engine: The ledger.
        run_id: The run.
        actor: Who asks.

    Returns:
        False where it was cancelled before.

    Raises:
        UnknownRun: If it is not there.
        WrongRunState: If it has ended.
    """
    with write(engine) as connection:
        waiting = update(TrainingRun).where(TrainingRun.id == run_id, TrainingRun.state.in_(_WAITING))
        if connection.execute(waiting.values(state=RunState.CANCELLED)).rowcount:
            append_entry(connection, actor, "cancel_run", f"run {run_id}")
            return True
        state = connection.execute(select(TrainingRun.state).where(TrainingRun.id == run_id)).scalar_one_or_none()
    if state is None:
        raise UnknownRun(f"There is no training run {run_id}.")
    if state != RunState.CANCELLED:
        raise WrongRunState(f"Training run {run_id} is {state.value} and cannot be cancelled.")
    return False


def due_runs(engine: Engine, *, stale_seconds: float = STALE_SECONDS) -> list[int]:
    """List the runs that a worker should be told of: queued, or left by one that died; reads only.

    Args:
        engine: The ledger.
        stale_seconds: A running one whose worker was not heard of for so long was left.

    Returns:
        Their ids, oldest first; none while one is worked on.
    """
    stale = _is_stale(stale_seconds)
    with read(engine) as connection:
        lively = and_(TrainingRun.state == RunState.RUNNING, ~stale)
        if connection.execute(select(TrainingRun.id).where(lively).limit(1)).first():
            return []
        due = select(TrainingRun.id).where(or_(TrainingRun.state == RunState.QUEUED, stale))
        return list(connection.execute(due.order_by(TrainingRun.id)).scalars())


def get_run(engine: Engine, run_id: int) -> RunRow:
    """Look a run up; reads only.

    Args:
        engine: The ledger.
        run_id: Its id.

    Returns:
        The run.

    Raises:
        UnknownRun: If it is not there.
    """
    with read(engine) as connection:
        row = connection.execute(_runs().where(TrainingRun.id == run_id)).mappings().one_or_none()
    if row is None:
        raise UnknownRun(f"There is no training run {run_id}.")
    return RunRow(**row)


def list_runs(engine: Engine) -> list[RunRow]:
    """List all runs, newest first; reads only.

    Args:
        engine: The ledger.

    Returns:
        The runs.
    """
    with read(engine) as connection:
        return [RunRow(**row) for row in connection.execute(_runs().order_by(TrainingRun.id.desc())).mappings()]


def _is_stale(seconds: float) -> ColumnElement[bool]:
    return and_(TrainingRun.state == RunState.RUNNING, TrainingRun.heartbeat < clock() - seconds)


def _runs() -> Select[Any]:
    return select(TrainingRun.__table__)
