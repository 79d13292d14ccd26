"""Bring the ledger to the newest schema: `python -m db.migrate`."""

import sys

from sqlalchemy.exc import SQLAlchemyError

from db.errors import LedgerError
from db.refusals import explain_refusal
from db.session import open_ledger, upgrade_schema
from db.settings import DbSettings, HomeSettings, read_settings


def main() -> int:
    """Open the ledger that the environment names and upgrade it.

    Returns:
        0, 2 where a setting is wrong, 3 where the database does not answer or refuses this user.
    """
    try:
        url = read_settings(DbSettings).ledger_url(read_settings(HomeSettings))
        upgrade_schema(open_ledger(url))
    except LedgerError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except SQLAlchemyError as error:
        sentence = explain_refusal(error, owner=True)
        if sentence is None:
            raise
        sys.stderr.write(f"{sentence}\n")
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
