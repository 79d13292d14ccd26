"""The audit trail: who did what, in a chain of hashes that shows a changed, removed or inserted entry."""

import hashlib
import json

from sqlalchemy import Connection, Engine, insert, select

from db.clock import clock
from db.session import read, take_lock, write
from db.tables import AuditEntry

#: What the first entry points back at.
GENESIS = "0" * 64

_PAGE = 5_000


def append_entry(connection: Connection, actor: str, action: str, subject: str, detail: str = "") -> None:
    """Append one entry; not idempotent, and inside the caller's transaction.

    Call it last: it lets one transaction at a time pass until that one ends.

    Args:
        connection: The caller's connection, in a transaction.
        actor: Who did it.
        action: What was done, a code.
        subject: What it was done to, an opaque id such as `batch 7`; never anything about a patient.
        detail: Why, in the actor's words.
    """
    take_lock(connection, "audit")
    previous = _newest_hash(connection)
    at = connection.execute(select(clock())).scalar_one()
    connection.execute(
        insert(AuditEntry).values(
            at=at,
            actor=actor,
            action=action,
            subject=subject,
            detail=detail,
            previous_hash=previous,
            hash=_hash(previous, at, actor, action, subject, detail),
        )
    )


def record_action(engine: Engine, actor: str, action: str, subject: str, detail: str = "") -> str:
    """Append one entry about something that changes no other row. Not idempotent; its own transaction.

    Args:
        engine: The ledger.
        actor: Who did it.
        action: What was done, a code.
        subject: What it was done to, an opaque id; never anything about a patient.
        detail: More, never anything about a patient.

    Returns:
        The chain's head from now on.
    """
    with write(engine) as connection:
        append_entry(connection, actor, action, subject, detail)
        return _newest_hash(connection)


def chain_head(engine: Engine) -> str:
    """Return the newest entry's hash, to be kept outside of the ledger; reads only.

    Args:
        engine: The ledger.

    Returns:
        64 hexadecimal digits; zeros where there is no entry yet.
    """
    with read(engine) as connection:
        return _newest_hash(connection)


def has_head(engine: Engine, head: str) -> bool:
    """Say whether a head that was kept is still part of the chain; reads only.

    With `verify_chain` it follows that no entry up to that one was changed or removed: each hash covers all before it.

    Args:
        engine: The ledger.
        head: From `chain_head`, kept elsewhere.

    Returns:
        False where the chain was cut off before it, or written anew.
    """
    with read(engine) as connection:
        found = connection.execute(select(AuditEntry.id).where(AuditEntry.hash == head)).first()
    return found is not None or head == GENESIS


def _newest_hash(connection: Connection) -> str:
    newest = select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
    return connection.execute(newest).scalar_one_or_none() or GENESIS


def verify_chain(engine: Engine) -> bool:
    """Say whether every entry has its own hash and points at the one before; reads only.

    Args:
        engine: The ledger.

    Returns:
        False if an entry was changed, inserted, or removed from the middle. A chain cut off at its end, or written
        anew as a whole, is sound in itself: `has_head` tells, given a head that was kept elsewhere.
    """
    with read(engine) as connection:
        return is_chain_intact(connection)


def is_chain_intact(connection: Connection) -> bool:
    """Do the work of `verify_chain` inside the caller's transaction.

    Args:
        connection: The caller's connection.

    Returns:
        Whether the chain is sound.
    """
    previous, last = GENESIS, 0
    while True:
        page = select(AuditEntry.__table__).where(AuditEntry.id > last).order_by(AuditEntry.id).limit(_PAGE)
        rows = connection.execute(page).all()
        if not rows:
            return True
        for row in rows:
            own = _hash(previous, row.at, row.actor, row.action, row.subject, row.detail)
            if row.previous_hash != previous or row.hash != own:
                return False
            previous, last = row.hash, row.id


def _hash(previous: str, at: float, actor: str, action: str, subject: str, detail: str) -> str:
    entry = json.dumps([previous, repr(at), actor, action, subject, detail], ensure_ascii=True)
    return hashlib.sha256(entry.encode()).hexdigest()
