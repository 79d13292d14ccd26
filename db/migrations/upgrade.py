"""The way from one schema revision to the newest, by Alembic without an alembic.ini."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from db.migrations.revision import current_revision, head_revision
from db.views import create_views, drop_views


def upgrade_to_head(connection: Connection) -> None:
    """Migrate the ledger inside the caller's transaction, its views made anew; idempotent.

    Args:
        connection: A connection with a transaction begun; nothing is committed here.
    """
    if current_revision(connection) == head_revision():
        # The views stay as they are: on PostgreSQL new ones would be without grants.
        return
    config = migration_config()
    config.attributes["connection"] = connection
    # Neither database lets a table change under a view that uses it.
    drop_views(connection)
    command.upgrade(config, "head")
    create_views(connection)


def migration_config() -> Config:
    """Return what Alembic must know of our migrations."""
    config = Config()
    # The parser of Alembic's options takes a percent sign for an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
