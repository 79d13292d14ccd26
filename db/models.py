"""Model versions: registering them, and which one new batches take."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Select, select, update
from sqlalchemy.dialects import postgresql, sqlite

from db.audit import append_entry
from db.clock import clock
from db.errors import UnknownModel
from db.session import read, take_lock, write
from db.tables import AuditEntry, ModelState, ModelVersion, RunState, TrainingRun

_PROMOTE: Final = "activate_model"
_ROLL_BACK: Final = "roll_back_model"
_SUBJECT: Final = "model "

_PREFIX: Final = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A registered model version."""

    #: sha256 of the canonical manifest.
    digest: str
    name: str
    backbone: str
    #: Digest of the version that it was trained from.
    parent: str | None
    state: ModelState
    metrics: Mapping[str, Any]
    #: Digest of its training data.
    data_digest: str
    created_at: float


def register_model(
    engine: Engine,
    *,
    digest: str,
    name: str,
    backbone: str,
    metrics: Mapping[str, Any],
    data_digest: str,
    parent: str | None = None,
    reference: Mapping[str, Any] | None = None,
) -> bool:
    """Register a model version as a candidate. Idempotent; its own transaction.

    Args:
        engine: The ledger.
        digest: Digest of its manifest.
        name: What it is called.
        backbone: Its backbone network.
        metrics: What was measured, as JSON.
        data_digest: Digest of its training data.
        parent: Digest of the version that it was trained from.
        reference: Histograms of held-out images, as JSON.

    Returns:
        False where it was registered before; that row stays as it is.
    """
    row = {
        "digest": digest,
        "name": name,
        "backbone": backbone,
        "parent": parent,
        "state": ModelState.CANDIDATE,
        "metrics": dict(metrics),
        "data_digest": data_digest,
        "reference": None if reference is None else dict(reference),
        "created_at": clock(),
    }
    with write(engine) as connection:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        fresh = dialect.insert(ModelVersion).values(row).on_conflict_do_nothing().returning(ModelVersion.digest)
        return connection.execute(fresh).first() is not None


def activate_model(engine: Engine, digest: str, *, actor: str, why: str) -> bool:
    """Make a version the one that new batches take. Idempotent; its own transaction; audited.

    Running batches keep the model that they are pinned to.

    Args:
        engine: The ledger.
        digest: A registered version.
        actor: Who asks.
        why: The reason, for the audit trail.

    Returns:
        False where it was active before.

    Raises:
        UnknownModel: If it is not registered.
    """
    with write(engine) as connection:
        take_lock(connection, "models")
        state = connection.execute(select(ModelVersion.state).where(ModelVersion.digest == digest)).scalar()
        if state is None:
            raise UnknownModel
        if state == ModelState.ACTIVE:
            return False
        _set_active(connection, digest, actor, why)
        return True


def activate_first(engine: Engine, digest: str, actor: str) -> bool:
    """Make a version active only where none is. Idempotent; its own transaction; audited.

    Args:
        engine: The ledger.
        digest: A registered version.
        actor: Who asks.

    Returns:
        Whether it became active now.

    Raises:
        UnknownModel: If none is active and it is not registered.
    """
    with write(engine) as connection:
        take_lock(connection, "models")
        if connection.execute(_models().where(ModelVersion.state == ModelState.ACTIVE)).first() is not None:
            return False
        _set_active(connection, digest, actor, "no model was active")
        return True


def replace_active(connection: Connection, before: str, digest: str, *, actor: str, why: str) -> bool:
    """Make a version the active one in place of another, in the caller's transaction; audited.

    Args:
        connection: A connection inside the caller's transaction.
        before: The version that must be active now: what the new one was compared with.
        digest: A registered version.
        actor: Who asks.
        why: The reason, for the audit trail.

    Returns:
        False where another version is active by now; then nothing changes.

    Raises:
        UnknownModel: If it is not registered.
    """
    take_lock(connection, "models")
    state = connection.execute(select(ModelVersion.state).where(ModelVersion.digest == before)).scalar()
    if state != ModelState.ACTIVE:
        return False
    _set_active(connection, digest, actor, why)
    return True


def roll_back_model(engine: Engine, *, actor: str, why: str) -> ModelRow:
    """Make the version active again that the active one replaced. Its own transaction; audited.

    Several in turn go further and further back: a version that was rolled back from is not come back to.

    Args:
        engine: The ledger.
        actor: Who asks.
        why: The reason, for the audit trail.

    Returns:
        The version that is active now.

    Raises:
        UnknownModel: If no version was active before.
    """
    with write(engine) as connection:
        take_lock(connection, "models")
        # The trail of activations is what went before; every promotion goes on from where the last one stands.
        entries = select(AuditEntry.action, AuditEntry.subject).where(AuditEntry.action.in_((_PROMOTE, _ROLL_BACK)))
        stack: list[str] = []
        for action, subject in connection.execute(entries.order_by(AuditEntry.id)):
            if action == _ROLL_BACK:
                stack.pop()
            elif stack[-1:] != [subject]:
                stack.append(subject)
        if len(stack) < 2:  # noqa: PLR2004 - the active one and the one before
            raise UnknownModel("No model was active before this one, so there is nothing to go back to")
        before = stack[-2].removeprefix(_SUBJECT)
        _set_active(connection, before, actor, why, action=_ROLL_BACK)
        row = connection.execute(_models().where(ModelVersion.digest == before)).one()
    return _model_row(row)


def find_model(engine: Engine, wanted: str) -> ModelRow:
    """Look a version up by its digest or the beginning of it; reads only.

    Args:
        engine: The ledger.
        wanted: At least six digits of the digest.

    Returns:
        The version.

    Raises:
        UnknownModel: If none begins so, or several do.
    """
    if not _PREFIX.fullmatch(wanted):
        raise UnknownModel("A model is named by its digest, or by six digits of it or more")
    with read(engine) as connection:
        rows = connection.execute(_models().where(ModelVersion.digest.startswith(wanted))).all()
    if len(rows) != 1:
        what = "There is no model version" if not rows else "There are several model versions"
        raise UnknownModel(f"{what} whose digest begins with {wanted}")
    return _model_row(rows[0])


def _set_active(connection: Connection, digest: str, actor: str, why: str, action: str = _PROMOTE) -> None:
    before = update(ModelVersion).where(ModelVersion.state == ModelState.ACTIVE)
    connection.execute(before.values(state=ModelState.RETIRED))
    chosen = update(ModelVersion).where(ModelVersion.digest == digest).values(state=ModelState.ACTIVE)
    if connection.execute(chosen).rowcount == 0:
        raise UnknownModel
    append_entry(connection, actor, action, f"{_SUBJECT}{digest}", why)


def active_model(engine: Engine) -> ModelRow | None:
    """Return the version that new batches take, or None where there is none; reads only.

    Args:
        engine: The ledger.

    Returns:
        The active version.
    """
    with read(engine) as connection:
        row = connection.execute(_models().where(ModelVersion.state == ModelState.ACTIVE)).one_or_none()
    return None if row is None else _model_row(row)


def get_model(engine: Engine, digest: str) -> ModelRow:
    """Look a version up; reads only.

    Args:
        engine: The ledger.
        digest: Digest of its manifest.

    Returns:
        The version.

    Raises:
        UnknownModel: If it is not registered.
    """
    with read(engine) as connection:
        row = connection.execute(_models().where(ModelVersion.digest == digest)).one_or_none()
    if row is None:
        raise UnknownModel
    return _model_row(row)


def list_models(engine: Engine) -> list[ModelRow]:
    """List all versions, newest first; reads only.

    Args:
        engine: The ledger.

    Returns:
        The versions.
    """
    order = (ModelVersion.created_at.desc(), ModelVersion.digest)
    with read(engine) as connection:
        return [_model_row(row) for row in connection.execute(_models().order_by(*order))]


def find_gate(engine: Engine, model_digest: str) -> dict[str, Any] | None:
    """Look up what the gate said of a model; reads only.

    Args:
        engine: The ledger.
        model_digest: The model.

    Returns:
        The newest run's decision with every figure behind it, or None where it was never asked.
    """
    theirs = (TrainingRun.model_digest == model_digest, TrainingRun.state == RunState.DONE)
    newest = select(TrainingRun.gate).where(*theirs)
    with read(engine) as connection:
        gate = connection.execute(newest.order_by(TrainingRun.id.desc()).limit(1)).scalar_one_or_none()
    return None if gate is None else dict(gate)


def _models() -> Select[Any]:
    return select(ModelVersion.__table__)


def _model_row(row: Row[Any]) -> ModelRow:
    return ModelRow(
        digest=row.digest,
        name=row.name,
        backbone=row.backbone,
        parent=row.parent,
        state=row.state,
        metrics=row.metrics,
        data_digest=row.data_digest,
        created_at=row.created_at,
    )
