"""A ledger of one kind."""

import pytest
from sqlalchemy import Engine


@pytest.fixture
def ledger(sqlite_ledger: Engine) -> Engine:
    """Take SQLite alone: what leaves the ledger does not depend on the database, and the parts' own tests use both."""
    return sqlite_ledger
