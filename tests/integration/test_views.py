"""The views that BI tools read, on both databases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

import db.migrations
from db.chunks import Rejected
from db.counts import count_items
from db.health import check_batch
from db.results import iter_report
from db.session import check_revision, upgrade_schema
from db.tables import CLASSES
from db.views import VIEWS, digest_views

if TYPE_CHECKING:
    from tests.conftest import Scene

#: What lesion_reader may not see in the tables either, by the tables' names for it.
NAMES = {"path", "image_id", "lesion_id", "patient_ref", "name", "source", "manifest_digest", "labelled_by", "worker"}
IDENTIFIERS = {"study_uid", "series_uid", "instance_uid"}


def _screen_half(scene: Scene) -> int:
    """Leave a batch with every outcome, the open ones in a chunk of their own."""
    batch, (first, _, third) = scene.open(3, 2, 1)
    claim = scene.claim(first)
    scene.record(
        claim,
        scene.scored(claim.items[0], score=0.9),
        scene.scored(claim.items[1], score=0.2, referred=True),
        Rejected(item_id=claim.items[2].item_id, reason="truncated"),
    )
    claim = scene.claim(third)
    scene.record(claim, Rejected(item_id=claim.items[0].item_id, reason="truncated"))
    scene.sql("UPDATE item SET state = 'quarantined', reason = 'killed_worker' WHERE chunk_id = :c", c=third)
    scene.sql("UPDATE chunk SET rejected_count = 0, quarantined_count = 1 WHERE id = :c", c=third)
    return batch


def test_the_worklist_says_of_every_item_what_the_export_says(scene: Scene) -> None:
    # Given a batch with several outcomes, and the same inputs under another model
    batch = _screen_half(scene)
    other, (chunk,) = scene.open(1, model="c" * 64)
    scene.record(claim := scene.claim(chunk), scene.scored(claim.items[0], f"{1:064x}", model="c" * 64), model="c" * 64)

    # If both are read, the view by another program
    with scene.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM v_worklist WHERE batch_id = :b ORDER BY item_id"), {"b": batch})
        seen = [dict(row) for row in rows.mappings()]

    # Then they agree, row by row
    exported = list(iter_report(scene.engine, batch))
    assert len(seen) == len(exported) == 6
    for row, item in zip(seen, exported, strict=True):
        for name in ("item_id", "model_digest", "state", "reason", "diagnosis", "confidence", "malignant_score"):
            assert row[name] == getattr(item, name), name
        for name in ("referred", "refer_reason", "age", "sex", "localization", "label"):
            assert row[name] == getattr(item, name), name
        assert tuple(row[f"p_{name}"] for name in CLASSES) == (item.probabilities or (None,) * 7)
    assert [row["malignant_score"] for row in seen] == [0.9, 0.2, None, None, None, None]
    assert other != batch


def test_the_summary_s_outcomes_add_up_to_what_was_found(scene: Scene) -> None:
    # Given a batch half done, one that is only being loaded, and one without a chunk
    batch = _screen_half(scene)
    loading = scene.load([scene.item("a.jpg"), scene.item("b.jpg")])
    empty = scene.load()

    # If the summary is read
    with scene.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM v_batch_summary")).mappings().all()
        summary = {row["batch_id"]: dict(row) for row in rows}

    # Then it has every batch, and counts as the program does
    assert set(summary) == {batch, loading, empty}
    for number, row in summary.items():
        counts = count_items(scene.engine, number)
        outcomes = {name: row[name] for name in ("open", "done", "referred", "rejected", "quarantined")}
        assert outcomes == {name: getattr(counts, name) for name in outcomes}
        assert row["found"] == counts.found == sum(outcomes.values())
    assert summary[batch] | {"found": 6, "open": 2, "done": 1, "referred": 1, "rejected": 1} == summary[batch]
    assert (summary[batch]["quarantined"], summary[batch]["state"]) == (1, "open")
    assert (summary[loading]["found"], summary[empty]["found"], summary[empty]["recorded_at"]) == (2, 0, None)
    assert check_batch(scene.engine, batch) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_names_no_patient_and_no_file(view: str, sqlite_ledger: Engine) -> None:
    columns = {str(column["name"]) for column in inspect(sqlite_ledger).get_columns(view)}

    assert "model_digest" in columns
    assert columns & (NAMES | IDENTIFIERS) == set()


def test_a_migration_makes_the_views_anew_and_an_upgrade_without_one_leaves_them(ledger: Engine) -> None:
    def columns() -> set[str]:
        return {str(column["name"]) for column in inspect(ledger).get_columns("v_worklist")}

    def stale() -> None:
        with ledger.begin() as connection:
            connection.execute(text("DROP VIEW v_worklist"))
            connection.execute(text("CREATE VIEW v_worklist AS SELECT id AS stale FROM item"))

    # Given an older ledger with an older view over its tables
    stale()
    with ledger.begin() as connection:
        for name in ("frame", *IDENTIFIERS):
            connection.execute(text(f"ALTER TABLE item DROP COLUMN {name}"))
        connection.execute(text("ALTER TABLE result DROP COLUMN evidence"))
        connection.execute(text("ALTER TABLE result ADD COLUMN attention_path TEXT"))
        connection.execute(text("DROP INDEX ix_chunk_batch_id_state_id"))
        connection.execute(text("CREATE INDEX ix_chunk_batch_id ON chunk (batch_id)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0005'"))

    # If it is upgraded, then the view is that of the program
    upgrade_schema(ledger)
    check_revision(ledger)
    assert {"item_id", "malignant_score"} <= columns()

    # If there is nothing to migrate, then grants on it are not lost
    stale()
    upgrade_schema(ledger)
    assert columns() == {"stale"}


def test_no_view_changes_without_a_migration() -> None:
    # Given the newest migration that speaks of the views
    scripts = ScriptDirectory(str(Path(next(iter(db.migrations.__path__)))))
    digests = [getattr(script.module, "views_digest", None) for script in scripts.walk_revisions()]

    # Then it was written for what they are now; ledgers of older revisions take them over with it
    assert next(filter(None, digests)) == digest_views()
