"""Views that BI tools read: a worklist and a summary of batches, neither of which names a patient or a file.

Every migration drops them before its first step and makes them again after its last, so that it may change any table
below them. On PostgreSQL their grants go with them: `db/roles.sql` is run after every migration in any case.
Their columns are described in `producer/EXPORTS.md`.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection

from db.tables import CLASSES

#: An item a row, with its verdict under its batch's model; ranked by `ORDER BY malignant_score DESC`. Joined as
#: `db.results.iter_report` joins, so that it says what results.csv says.
_WORKLIST: Final = f"""
SELECT
    item.batch_id,
    item.id AS item_id,
    batch.model_digest,
    item.state,
    item.reason,
    result.malignant_score,
    result.diagnosis,
    result.confidence,
    result.referred,
    result.refer_reason,
    {", ".join(f"result.p_{name}" for name in CLASSES)},
    result.distance,
    item.age,
    item.sex,
    item.localization,
    item.label,
    item.image_digest
FROM item
JOIN batch ON batch.id = item.batch_id
LEFT JOIN result ON result.input_digest = item.input_digest AND result.model_digest = batch.model_digest
"""  # noqa: S608 - put together from the names of our own classes

#: The chunks' counters, as in `db.counts`: ten million items are summed as fast as their forty thousand chunks.
_BATCH_SUMMARY: Final = """
SELECT
    batch.id AS batch_id,
    batch.state,
    batch.priority,
    batch.model_digest,
    batch.created_at,
    batch.opened_at,
    MAX(chunk.recorded_at) AS recorded_at,
    COALESCE(SUM(chunk.items), 0) AS found,
    COALESCE(SUM(chunk.open_count), 0) AS open,
    COALESCE(SUM(chunk.done_count), 0) AS done,
    COALESCE(SUM(chunk.referred_count), 0) AS referred,
    COALESCE(SUM(chunk.rejected_count), 0) AS rejected,
    COALESCE(SUM(chunk.quarantined_count), 0) AS quarantined
FROM batch
LEFT JOIN chunk ON chunk.batch_id = batch.id
GROUP BY batch.id
"""

#: View to the query behind it. Whoever changes one adds a migration that has `views_digest` of the new ones.
VIEWS: Final[Mapping[str, str]] = {"v_worklist": _WORKLIST, "v_batch_summary": _BATCH_SUMMARY}


def drop_views(connection: Connection) -> None:
    """Drop the views, inside the caller's transaction; idempotent.

    Args:
        connection: The caller's connection.
    """
    for name in VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")


def create_views(connection: Connection) -> None:
    """Make the views, inside the caller's transaction; they must not be there.

    Args:
        connection: The caller's connection, to a ledger of the newest schema.
    """
    for name, query in VIEWS.items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")


def digest_views() -> str:
    """Digest what the views are, so that none changes without a migration.

    Returns:
        SHA-256 of their names and queries.
    """
    return hashlib.sha256(repr(sorted(VIEWS.items())).encode()).hexdigest()
