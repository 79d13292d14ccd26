"""Training runs: queueing one, and the lease under which one worker at a time works on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, case, func, insert, or_, select, update

from db.audit import append_entry
from db.clock import clock
from db.errors import LeaseLost, UnknownRun, WrongRunState
from db.models import replace_active
from db.run_log import note_event
from db.session import read, take_lock, write
from db.tables import AuditEntry, Label, RunState, TrainingRun

#: A run whose worker was not heard of for so long is another worker's, seconds.
STALE_SECONDS: Final = 120
#: A run that has cost so many workers without an epoch in between is given up.
MOST_CRASHES: Final = 5

_WAITING: Final = (RunState.QUEUED, RunState.RUNNING)
_USE_GATE_SET: Final = "use_gate_set"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A training run as the ledger has it."""

    id: int
    state: RunState
    #: The fence: raised by every claim, and only its holder may write.
    attempt: int
    #: Workers lost since the last epoch.
    crashes: int
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


def queue_scheduled_run(engine: Engine, params: Mapping[str, Any], actor: str, *, least_labels: int) -> int | None:
    """Queue a training run where none waits and there is something to learn. Its own transaction; audited.

    Args:
        engine: The ledger.
        params: What to train, as JSON; nothing about a patient.
        actor: Who asks.
        least_labels: So many confirmed diagnoses must have come since the newest run was queued.

    Returns:
        The new run's id, or None: overlapping schedules never start two.
    """
    with write(engine) as connection:
        take_lock(connection, "runs")
        if connection.execute(select(TrainingRun.id).where(TrainingRun.state.in_(_WAITING)).limit(1)).first():
            return None
        last = select(func.coalesce(func.max(TrainingRun.created_at), 0.0)).scalar_subquery()
        fresh = select(func.count()).select_from(Label).where(Label.created_at > last)
        if connection.execute(fresh).scalar_one() < least_labels:
            return None
        return _queue(connection, params, actor)


def _queue(connection: Connection, params: Mapping[str, Any], actor: str) -> int:
    row = insert(TrainingRun).values(state=RunState.QUEUED, params=dict(params), created_at=clock())
    run_id = connection.execute(row.returning(TrainingRun.id)).scalar_one()
    append_entry(connection, actor, "queue_run", f"run {run_id}")
    note_event(connection, run_id, "queued")
    return run_id


def claim_run(engine: Engine, run_id: int, *, worker: str, stale_seconds: float = STALE_SECONDS) -> RunRow | None:
    """Take a run, if it is there to be had and no other one is worked on. Not idempotent; its own transaction.

    A run that was left by a worker that died costs that worker; one that has cost `MOST_CRASHES` of them fails here.

    Args:
        engine: The ledger.
        run_id: The run, as a message named it.
        worker: Who claims it.
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
        values = {
            "state": RunState.RUNNING,
            "attempt": TrainingRun.attempt + 1,
            "crashes": TrainingRun.crashes + case((TrainingRun.state == RunState.RUNNING, 1), else_=0),
            "heartbeat": clock(),
        }
        if connection.execute(taken.values(values)).rowcount == 0:
            return None
        row = RunRow(**connection.execute(_runs().where(TrainingRun.id == run_id)).mappings().one())
        if row.crashes < MOST_CRASHES:
            note_event(
                connection, run_id, "claimed", {"worker": worker, "attempt": row.attempt, "crashes": row.crashes}
            )
            return row
        reason = f"{row.crashes} workers in a row were lost with it before an epoch was done; see their logs."
        _fail(connection, run_id, row.attempt, reason)
        return None


def beat_run(engine: Engine, run_id: int, attempt: int) -> None:
    """Say that a run is worked on. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    with write(engine) as connection:
        _write_fenced(connection, run_id, attempt, {})


def report_epoch(engine: Engine, run_id: int, attempt: int, progress: Mapping[str, Any]) -> None:
    """Say how far a run is, and forgive it the workers it has cost. Its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.
        progress: What to show, as JSON.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    with write(engine) as connection:
        _write_fenced(connection, run_id, attempt, {"progress": dict(progress), "crashes": 0})
        note_event(connection, run_id, "epoch", progress)


def report_event(engine: Engine, run_id: int, attempt: int, kind: str, data: Mapping[str, Any]) -> None:
    """Write a line of a run's log. Its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.
        kind: One word.
        data: What happened, as JSON; nothing about a patient.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    with write(engine) as connection:
        _write_fenced(connection, run_id, attempt, {})
        note_event(connection, run_id, kind, data)


def note_model(engine: Engine, run_id: int, attempt: int, model_digest: str) -> None:
    """Note which model came of a run, so that it is not trained again should its worker die now. Its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.
        model_digest: A registered version.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    with write(engine) as connection:
        _write_fenced(connection, run_id, attempt, {"model_digest": model_digest})
        note_event(connection, run_id, "model", {"digest": model_digest})


def count_gate_use(engine: Engine, run_id: int, gate_set: str) -> int:
    """Count a use of a gate set: each one tells a little more about it. Its own transaction; audited.

    Args:
        engine: The ledger.
        run_id: The run whose model is judged.
        gate_set: Digest of the set.

    Returns:
        How often it was used, this time included.
    """
    subject = f"gate set {gate_set}"
    with write(engine) as connection:
        append_entry(connection, "training", _USE_GATE_SET, subject, f"run {run_id}")
        uses = select(func.count()).where(AuditEntry.action == _USE_GATE_SET, AuditEntry.subject == subject)
        return connection.execute(uses).scalar_one()


def finish_run(
    engine: Engine,
    run_id: int,
    attempt: int,
    *,
    gate: Mapping[str, Any] | None,
    promote_over: str | None = None,
) -> bool:
    """End a run that has its model, and promote that where the gate said so: both or neither. Its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.
        gate: What the gate said, as JSON; None where there was nothing to compare with.
        promote_over: Make the model the active one, if the version of this digest still is; audited.

    Returns:
        Whether it was promoted.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    with write(engine) as connection:
        _write_fenced(
            connection, run_id, attempt, {"state": RunState.DONE, "gate": None if gate is None else dict(gate)}
        )
        digest = connection.execute(select(TrainingRun.model_digest).where(TrainingRun.id == run_id)).scalar_one()
        promoted = (
            promote_over is not None
            and digest is not None
            and replace_active(connection, promote_over, digest, actor="training", why=f"the gate, run {run_id}")
        )
        note_event(connection, run_id, "done", {"promoted": promoted})
        return promoted


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
    with write(engine) as connection:
        _fail(connection, run_id, attempt, reason)


def _fail(connection: Connection, run_id: int, attempt: int, reason: str) -> None:
    _write_fenced(connection, run_id, attempt, {"state": RunState.FAILED, "progress": {"reason": reason}})
    note_event(connection, run_id, "failed", {"reason": reason})


def release_run(engine: Engine, run_id: int, attempt: int) -> None:
    """Give a run back to the queue, with no worker counted as lost. Its own transaction.

    Args:
        engine: The ledger.
        run_id: The run.
        attempt: The claim's attempt.

    Raises:
        LeaseLost: If another attempt owns the run, or it was cancelled.
    """
    with write(engine) as connection:
        _write_fenced(connection, run_id, attempt, {"state": RunState.QUEUED})
        note_event(connection, run_id, "released")


def _write_fenced(connection: Connection, run_id: int, attempt: int, values: Mapping[str, Any]) -> None:
    mine = (TrainingRun.id == run_id, TrainingRun.attempt == attempt, TrainingRun.state == RunState.RUNNING)
    written = update(TrainingRun).where(*mine).values({"heartbeat": clock(), **values})
    if connection.execute(written).rowcount == 0:
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
            note_event(connection, run_id, "cancelled")
            return True
        state = connection.execute(select(TrainingRun.state).where(TrainingRun.id == run_id)).scalar_one_or_none()
    if state is None:
        raise UnknownRun(run_id)
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
        raise UnknownRun(run_id)
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
