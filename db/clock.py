"""The database's clock: the only clock that leases, pauses and durations trust."""

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class clock(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """Seconds since 1970 by the database's clock, as a double.

    The wall clock of the statement, not of the transaction: a lease must not be dated from the start of a
    transaction that has waited for a lock.
    """

    type = Double()
    inherit_cache = True


@compiles(clock, "postgresql")
def _clock_on_postgresql(_element: clock, _compiler: SQLCompiler, **_options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(clock, "sqlite")
def _clock_on_sqlite(_element: clock, _compiler: SQLCompiler, **_options: Any) -> str:
    # SQLite 3.40 answers NULL to unixepoch('now', 'subsec'); julianday has had milliseconds for ever.
    return "((julianday('now') - 2440587.5) * 86400.0)"
