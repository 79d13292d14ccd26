"""Refusals: what a database says when it is away, full, damaged or not ours, in a sentence for people."""

import sqlite3
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from db.session import is_transient

#: PostgreSQL SQLSTATE prefixes: insufficient privilege, and a login that is refused.
_POSTGRES_REFUSED: Final = ("42501", "28")


def explain_refusal(error: Exception, *, owner: bool = False) -> str | None:
    """Say what a person can mend.

    Args:
        error: Any exception.
        owner: Whether what was tried is for the schema's owner alone.

    Returns:
        One sentence with the next step, which quotes neither statement, row nor address; None where it is a bug, or not
        the database's.
    """
    if not isinstance(error, SQLAlchemyError):
        return None
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:
        return (
            "The ledger's file cannot be opened; check that DB_URL or LESION_SCREEN_HOME names a file, no folder, that "
            "this user may read and write."
        )
    if is_transient(error):
        return "The ledger does not answer or its disk is full; check DB_URL and run again."
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return "The ledger's file is damaged or no ledger; check DB_URL and LESION_SCREEN_HOME, or restore a backup."
    refused = str(getattr(cause, "sqlstate", None) or "").startswith(_POSTGRES_REFUSED)
    if refused or code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}:
        who = " On a server it is the schema's owner who may do this." if owner else ""
        return f"The ledger refuses this user; check the rights of its file or of the role in DB_URL.{who}"
    return None
