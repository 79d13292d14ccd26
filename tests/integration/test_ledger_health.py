"""Damage that is planted behind the ledger's back is found, on both databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect, text

from db.batches import pause_batch, resume_batch
from db.chunks import Rejected
from db.health import INVARIANTS, check_batch

if TYPE_CHECKING:
    from tests.conftest import Scene

#: Invariant, and a statement that breaks it; `:batch` is the batch with the damage.
DAMAGE = {
    "counters_match_items": "UPDATE chunk SET done_count = done_count - 1, open_count = open_count + 1"
    " WHERE batch_id = :batch AND done_count > 0",
    "outcomes_add_up": "UPDATE chunk SET items = items + 1 WHERE batch_id = :batch",
    "items_stay_in_batch": "UPDATE item SET batch_id = :batch + 1 WHERE batch_id = :batch",
    "chunks_end_with_their_items": "UPDATE chunk SET state = 'open' WHERE batch_id = :batch AND state = 'done'",
    "leases_only_while_running": "UPDATE chunk SET suspect_item_id = 1 WHERE batch_id = :batch AND state = 'done'",
    "verdicts_have_results": "DELETE FROM result WHERE referred",
    "states_match_results": "UPDATE item SET state = 'done' WHERE batch_id = :batch AND state = 'referred'",
    "reasons_are_given": "UPDATE item SET reason = NULL WHERE batch_id = :batch AND state = 'rejected'",
    "probabilities_sum_to_one": "UPDATE result SET p_nv = p_nv + 0.5",
    "audit_chain_is_intact": "UPDATE audit SET actor = 'somebody else' WHERE id = 1",
}


def a_sound_batch(scene: Scene) -> int:
    batch, (chunk, _) = scene.open(3, 1)
    scene.open(1)
    claim = scene.claim(chunk)
    one, two, three = claim.items
    scene.record(
        claim, scene.scored(one), scene.scored(two, referred=True), Rejected(item_id=three.item_id, reason="truncated")
    )
    pause_batch(scene.engine, batch, "me")
    resume_batch(scene.engine, batch, "me")
    return batch


def plant(scene: Scene, statement: str, batch: int) -> None:
    """Run a statement with the database's own constraints out of the way."""
    with scene.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        else:
            for table in ("chunk", "item"):
                for constraint in inspect(connection).get_check_constraints(table):
                    connection.execute(text(f'ALTER TABLE {table} DROP CONSTRAINT "{constraint["name"]}"'))
        values = {"batch": batch} if ":batch" in statement else {}
        assert connection.execute(text(statement), values).rowcount > 0
        connection.commit()
        connection.invalidate()


def test_a_sound_batch_has_no_findings(scene: Scene) -> None:
    # Given a batch with items in many states
    batch = a_sound_batch(scene)

    # If it is checked
    # Then there is nothing to say
    assert check_batch(scene.engine, batch) == []


def test_every_invariant_has_its_damage_here() -> None:
    # Given the invariants
    # If their names are compared with the damage below
    # Then none goes untested
    assert {invariant.__name__ for invariant in INVARIANTS} == set(DAMAGE)


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_planted_damage_is_found(scene: Scene, name: str) -> None:
    # Given a sound batch that somebody tampered with
    batch = a_sound_batch(scene)
    plant(scene, DAMAGE[name], batch)

    # If it is checked
    findings = {finding.name: finding for finding in check_batch(scene.engine, batch)}

    # Then the invariant is named, with a count and a sentence
    assert findings[name].count > 0
    assert findings[name].detail.endswith(".")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE chunk SET items = items + 1",
        "UPDATE chunk SET open_count = -1, done_count = done_count + 2 WHERE state = 'done'",
        "UPDATE chunk SET state = 'open' WHERE state = 'done'",
        "UPDATE chunk SET state = 'running' WHERE state = 'open'",
        "UPDATE item SET state = 'forgotten'",
        "UPDATE item SET reason = NULL WHERE state = 'rejected'",
        "UPDATE item SET input_digest = NULL WHERE state = 'done'",
        "UPDATE item SET path = NULL WHERE state = 'done'",
    ],
)
def test_the_database_itself_refuses_a_count_that_does_not_add_up(scene: Scene, statement: str) -> None:
    # Given a sound batch
    from sqlalchemy.exc import IntegrityError

    a_sound_batch(scene)

    # If a statement would break it
    # Then the database refuses, whoever sends it
    with pytest.raises(IntegrityError):
        scene.sql(statement)


@pytest.mark.parametrize(
    "tampering",
    ["DELETE FROM audit WHERE id = 1", "UPDATE audit SET at = at + 1 WHERE id = 2", "UPDATE audit SET hash = 'x'"],
)
def test_a_tampered_audit_trail_is_noticed(scene: Scene, tampering: str) -> None:
    # Given an audit trail of two entries
    from db.audit import verify_chain

    a_sound_batch(scene)
    assert verify_chain(scene.engine)

    # If somebody changes it or takes an entry out
    scene.sql(tampering if "hash" not in tampering else tampering + " WHERE id = 2")

    # Then it is noticed
    assert not verify_chain(scene.engine)
