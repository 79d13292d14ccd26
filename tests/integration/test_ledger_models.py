"""Registering and activating model versions, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from db.audit import verify_chain
from db.errors import UnknownModel
from db.models import activate_first, activate_model, active_model, get_model, list_models, register_model
from db.tables import ModelState

if TYPE_CHECKING:
    from sqlalchemy import Engine


def register(engine: Engine, digest: str) -> bool:
    return register_model(
        engine, digest=digest, name="derm", backbone="mobilenet", metrics={"recall": 0.75}, data_digest="d" * 64
    )


def test_a_version_is_registered_once(ledger: Engine) -> None:
    # Given an empty ledger
    # If a version is registered twice
    # Then the second time changes nothing
    assert register(ledger, "a" * 64)
    assert not register(ledger, "a" * 64)
    (row,) = list_models(ledger)
    assert row == get_model(ledger, "a" * 64)
    assert (row.name, row.backbone, row.parent, row.state) == ("derm", "mobilenet", None, ModelState.CANDIDATE)
    assert row.metrics == {"recall": 0.75}
    assert active_model(ledger) is None


def test_the_first_version_becomes_active_only_where_none_is(ledger: Engine) -> None:
    # Given two versions
    register(ledger, "a" * 64)
    register(ledger, "b" * 64)

    # If each would be the first
    # Then only one is
    assert activate_first(ledger, "a" * 64, "me")
    assert not activate_first(ledger, "b" * 64, "me")
    active = active_model(ledger)
    assert active is not None
    assert active.digest == "a" * 64


def test_promotion_retires_the_version_before(ledger: Engine) -> None:
    # Given an active version and a candidate
    register(ledger, "a" * 64)
    register(ledger, "b" * 64)
    activate_first(ledger, "a" * 64, "me")

    # If the candidate is promoted, twice, and the old one brought back
    promoted = [activate_model(ledger, "b" * 64, actor="me", why="better") for _ in range(2)]
    states = {row.digest[0]: row.state for row in list_models(ledger)}
    activate_model(ledger, "a" * 64, actor="me", why="rollback")

    # Then one is active at any time and each change is in the audit trail
    assert promoted == [True, False]
    assert states == {"a": ModelState.RETIRED, "b": ModelState.ACTIVE}
    assert get_model(ledger, "b" * 64).state is ModelState.RETIRED
    assert verify_chain(ledger)


def test_an_unknown_version_is_not_activated(ledger: Engine) -> None:
    # Given an active version
    register(ledger, "a" * 64)

    # If one that was never registered would be active
    # Then it is refused and the active one stays
    with pytest.raises(UnknownModel):
        activate_first(ledger, "b" * 64, "me")
    activate_first(ledger, "a" * 64, "me")
    with pytest.raises(UnknownModel):
        activate_model(ledger, "b" * 64, actor="me", why="typo")
    with pytest.raises(UnknownModel):
        get_model(ledger, "b" * 64)
    assert get_model(ledger, "a" * 64).state is ModelState.ACTIVE


def test_of_versions_promoted_at_once_one_is_active_and_the_trail_has_no_fork(ledger: Engine) -> None:
    # Given six candidates
    digests = [letter * 64 for letter in "abcdef"]
    for digest in digests:
        register(ledger, digest)
    start = threading.Barrier(6)

    def promote(digest: str) -> bool:
        start.wait()
        return activate_model(ledger, digest, actor="me", why="race")

    # If all are promoted at the same moment
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(promote, digests))

    # Then one is active and every change is in one chain
    assert [row.state for row in list_models(ledger)].count(ModelState.ACTIVE) == 1
    assert verify_chain(ledger)
