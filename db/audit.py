"""The audit trail: who did what, in a chain of hashes that shows a changed, removed or inserted entry."""

import hashlib
import json

from sqlalchemy import Connection, Engine, insert, select

from db.clock import clock
from db.session import read, take_lock
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
    newest = select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
    previous = connection.execute(newest).scalar_one_or_none() or GENESIS
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


def verify_chain(engine: Engine) -> bool:
    """Say whether every entry has its own hash and points at the one before; reads only.

    Args:
        engine: The ledger.

    Returns:
        False if an entry was changed, inserted, or removed from the middle. A chain cut off at its end is sound in
        itself: compare its newest hash with a copy kept elsewhere.
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
