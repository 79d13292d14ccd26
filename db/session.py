"""Connections to the ledger: opening it, transactions, schema revision and which errors pass by themselves."""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy import exc as sa

from db.errors import EmptyLedger, LedgerError, NetworkFileSystem, SchemaMismatch, WriteRefused
from db.migrations.revision import current_revision, head_revision
from db.settings import full_path

#: How SQLite speaks of a constraint of ours.
_SQLITE_CONSTRAINT = re.compile(r"[A-Z ]+ constraint failed(: [\w., ]+)?")

#: SQLite waits this long for another writer, milliseconds.
BUSY_TIMEOUT_MS = 30_000

#: PostgreSQL ends a transaction that sits idle, and a wait for a lock, after this long, milliseconds: a worker that is
#: frozen or cut off in the middle of a transaction must not keep a chunk locked that another one could take over.
_POSTGRES_TIMEOUT_MS = 30_000

#: File systems on which SQLite's locks or its shared memory do not work.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)

#: SQLite primary result codes that pass: busy, locked, I/O error, full, cannot open, locking protocol.
_SQLITE_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)

#: PostgreSQL SQLSTATE prefixes that pass: connection, rollback (deadlock, serialisation), resources (disk full,
#: too many connections), lock not available, idle transaction ended, statement cancelled, server going down or
#: starting, I/O error.
_POSTGRES_TRANSIENT = ("08", "40", "53", "55P03", "25P03", "57014", "57P", "58030")

#: What a caller catches before it asks `is_transient`.
TRANSIENT_ERRORS: tuple[type[Exception], ...] = (sa.DBAPIError, sa.TimeoutError)

_READ_ONLY = "ledger_read_only"


def open_ledger(url: str, *, pool_size: int = 5) -> Engine:
    """Open the ledger; its schema is neither created nor checked here.

    Args:
        url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.
        pool_size: Connections that this process keeps.

    Returns:
        An engine. Make it after a fork, never before.

    Raises:
        NetworkFileSystem: If the SQLite file would lie on a network file system.
        LedgerError: If the URL names neither a SQLite file nor PostgreSQL.
        sqlalchemy.exc.DBAPIError: If the SQLite file cannot be opened, or is no ledger.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed, pool_size)
    if parsed.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return _open_postgres(parsed.set(drivername="postgresql+psycopg"), pool_size)
    raise LedgerError("The ledger is a SQLite file or a PostgreSQL database; DB_URL names something else.")


def _open_sqlite(url: URL, pool_size: int) -> Engine:
    if not url.database or url.database == ":memory:":
        raise LedgerError(
            "A SQLite ledger must be a file, as several processes share it; set DB_URL to sqlite:////path/ledger.sqlite."
        )
    path = full_path(url.database)
    # Patient data: what is created here is for its owner only; SQLite gives the WAL the same mode.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_network_path(path.parent):
        raise NetworkFileSystem(
            "The SQLite ledger lies on a network file system, where its locks fail; "
            "set LESION_SCREEN_HOME to a local folder or DB_URL to a PostgreSQL database."
        )
    _create_private(path)
    engine = create_engine(
        url.set(database=str(path)),
        pool_size=pool_size,
        max_overflow=10,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    _switch_to_wal(path)
    return engine


def _create_private(path: Path) -> None:
    # A file that is there is not even opened: closing any descriptor of it would drop the locks that other engines of
    # this process hold (POSIX fcntl), and the last one to leave elsewhere would delete the WAL under their hands
    # (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return


def _open_postgres(url: URL, pool_size: int) -> Engine:
    timeouts = f"-c idle_in_transaction_session_timeout={_POSTGRES_TIMEOUT_MS} -c lock_timeout={_POSTGRES_TIMEOUT_MS}"
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=10,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": 10,
            "application_name": "lesion-screen",
            "options": timeouts,
            # A path that swallows packets is noticed in half a minute, not in the kernel's two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver must not open transactions by itself: it would open deferred ones.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    # With a WAL, a crash of any process loses nothing; a power cut may lose the last moments, which are screened again.
    connection.execute("PRAGMA synchronous = NORMAL")
    # What is erased, or moved within its page by an update, must not stay legible in the file.
    connection.execute("PRAGMA secure_delete = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first and writes later fails at once with SQLITE_BUSY_SNAPSHOT, whatever the
    # busy timeout; IMMEDIATE waits for its turn.
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _switch_to_wal(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000)) as connection:
            _insist_on_wal(connection)
    except sqlite3.Error as error:
        # As SQLAlchemy says it, so that whoever opens a ledger meets one kind of error.
        kind = sa.OperationalError if isinstance(error, sqlite3.OperationalError) else sa.DatabaseError
        raise kind("PRAGMA journal_mode = WAL", None, error) from error


def _insist_on_wal(connection: sqlite3.Connection) -> None:
    # The switch is kept in the file. SQLite does not wait its busy timeout for it, so two processes that open a new
    # ledger at once would meet "database is locked".
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            # A person waits here, and a file that cannot be opened is mostly another user's.
            passes = code in _SQLITE_TRANSIENT and code != sqlite3.SQLITE_CANTOPEN
            if not passes or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def is_network_path(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """Say whether a folder lies on a network file system.

    Args:
        path: An existing folder.
        mountinfo: The kernel's list of mounts (proc_pid_mountinfo(5)).

    Returns:
        False also where the kernel keeps no such list.
    """
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    here = path.resolve()
    found, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = Path(left.split(" ")[4].replace("\\040", " ").replace("\\011", "\t"))
        # A later mount on the same point hides the earlier one.
        if here.is_relative_to(point) and len(point.parts) >= found:
            found, kind = len(point.parts), right.split(" ")[0]
    return kind in _NETWORK_FILE_SYSTEMS


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes; it commits at the end and rolls back on any exception.

    Args:
        engine: The ledger.

    Yields:
        The connection.

    Raises:
        WriteRefused: If a constraint refuses a row.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (sa.IntegrityError, sa.DataError) as error:
        # PostgreSQL's text quotes the failing row, patient and path included, so it must not travel on as the cause.
        raise WriteRefused(f"The ledger refused a row: {_constraint(error)}.") from None


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads and sees one moment of the ledger.

    Args:
        engine: The ledger.

    Yields:
        The connection.
    """
    with engine.connect() as connection:
        options: dict[str, Any] = {_READ_ONLY: True}
        if connection.dialect.name == "postgresql":
            # Its default takes a new snapshot for every statement: counts of two statements would not add up.
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with connection.execution_options(**options).begin():
            yield connection


def take_lock(connection: Connection, name: str) -> None:
    """Let one transaction at a time pass here; the lock ends with the transaction.

    SQLite has one writer at a time anyway.

    Args:
        connection: A connection inside the caller's transaction.
        name: What is locked.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"lesion-screen {name}", 0))))


def upgrade_schema(engine: Engine) -> None:
    """Bring the ledger to the newest schema, in one transaction of its own; idempotent.

    Several processes may call it at once: one migrates, the others wait and find nothing to do.

    Args:
        engine: The ledger.
    """
    # Alembic costs every process that does not migrate a sixth of its start.
    from db.migrations.upgrade import upgrade_to_head

    with engine.begin() as connection:
        take_lock(connection, "schema")
        upgrade_to_head(connection)


def check_revision(engine: Engine) -> None:
    """Refuse to work on a schema that this program does not know; reads only.

    Args:
        engine: The ledger.

    Raises:
        EmptyLedger: If there is no schema.
        SchemaMismatch: If the schema is older or newer.
    """
    with read(engine) as connection:
        found = current_revision(connection)
    needed = head_revision()
    if found is None:
        raise EmptyLedger(f"The ledger is empty (needed: schema {needed}); run `python -m db.migrate` first.")
    if found != needed:
        raise SchemaMismatch(
            f"The ledger has schema {found} and this program needs {needed}; "
            "run `python -m db.migrate` with the newest version installed."
        )


def empty_write_ahead_log(engine: Engine) -> None:
    """Write SQLite's log into its file and empty it, so that what was erased is in neither. Idempotent.

    With a reader in the way it is done when the last connection closes. PostgreSQL needs nothing of us.

    Args:
        engine: The ledger.
    """
    if engine.dialect.name != "sqlite":
        return
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def is_transient(error: BaseException) -> bool:
    """Say whether an error of the database passes by itself, so that the caller waits and tries again.

    Args:
        error: Any exception.

    Returns:
        True for a lost or refused connection, a deadlock, a serialisation failure, a full disk, an I/O error, a busy
        SQLite file and an exhausted connection pool; False for everything that trying again cannot cure.
    """
    if isinstance(error, sa.TimeoutError):
        return True
    if not isinstance(error, sa.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # The driver raises some errors itself, without a code; those are misuse.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_TRANSIENT
    state = getattr(cause, "sqlstate", None)
    if state is None:
        # No server answered: the connection was refused, cut or timed out.
        return isinstance(error, sa.OperationalError)
    return str(state).startswith(_POSTGRES_TRANSIENT)


def _constraint(error: sa.DBAPIError) -> str:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # SQLite names the constraint or its columns, never the values; a trigger says what its author wrote.
        return str(cause) if _SQLITE_CONSTRAINT.fullmatch(str(cause)) else cause.sqlite_errorname
    name = getattr(getattr(cause, "diag", None), "constraint_name", None)
    return str(name or getattr(cause, "sqlstate", None) or type(cause).__name__)
