"""The schema revision: where the ledger is and where it should be; asked by every process, so without Alembic."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, column, inspect, select, table

#: Alembic's own table, of one row.
_VERSIONS: Final = table("alembic_version", column("version_num"))


def head_revision() -> str:
    """Return the revision that this program needs: that of the last migration, whose file is named after it."""
    return max(path.name for path in (Path(__file__).parent / "versions").glob("r*.py")).partition("_")[0][1:]


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the ledger behind a connection, or None where it has none."""
    if not inspect(connection).has_table(_VERSIONS.name):
        return None
    found: str | None = connection.scalar(select(_VERSIONS.c.version_num))
    return found
