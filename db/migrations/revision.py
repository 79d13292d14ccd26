"""The schema revision: where the ledger is, where it should be, and the way there, without an alembic.ini."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from db.views import create_views, drop_views


def head_revision() -> str:
    """Return the revision that this program needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("The package ships no migration.")
    return head


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the ledger behind a connection, or None where it has none."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade_to_head(connection: Connection) -> None:
    """Migrate the ledger inside the caller's transaction, its views made anew; idempotent.

    Args:
        connection: A connection with a transaction begun; nothing is committed here.
    """
    if current_revision(connection) == head_revision():
        # The views stay as they are: on PostgreSQL new ones would be without grants.
        return
    config = _config()
    config.attributes["connection"] = connection
    # Neither database lets a table change under a view that uses it.
    drop_views(connection)
    command.upgrade(config, "head")
    create_views(connection)


def _config() -> Config:
    config = Config()
    # The parser of Alembic's options takes a percent sign for an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
