"""Sixty seeded kills lose nothing and count nothing twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from db.batches import finish_loading
from db.chunks import Rejected
from tests.faults.campaign import draw_archive, run_campaign
from tests.faults.outcome import Outcome
from tests.faults.schedule import KINDS, draw_schedule

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Scene


@pytest.mark.timeout(900)
def test_sixty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    outcome = run_campaign(tmp_path, seed=1, kills=60, images=2000)

    assert outcome.passed, outcome.line()
    # And it was a campaign: every kind of process died, and claims were taken over
    assert outcome.kills.total() == 60
    assert set(outcome.kills) == set(KINDS)
    assert outcome.recoveries


def test_a_seed_draws_its_schedule_again() -> None:
    assert draw_schedule(7, 20, "short") == draw_schedule(7, 20, "short")
    assert draw_schedule(7, 20, "short") != draw_schedule(8, 20, "short")


@pytest.mark.parametrize(
    ("damage", "lost", "doubled"),
    [
        ("SELECT 1", 0, 0),
        ("DELETE FROM item WHERE path = '000007.png'", 1, 0),
        ("UPDATE item SET state = 'open' WHERE path = '000007.png'", 1, 0),
        ("UPDATE item SET state = 'rejected', reason = 'truncated' WHERE path = '000007.png'", 1, 0),
        ("UPDATE item SET path = '000008.png' WHERE path = '000007.png'", 1, 1),
        ("DELETE FROM result WHERE input_digest = '7'", 1, 0),
        ("UPDATE chunk SET items = items + 2, done_count = done_count + 2", 0, 2),
    ],
)
def test_what_is_lost_or_doubled_is_seen(scene: Scene, tmp_path: Path, damage: str, lost: int, doubled: int) -> None:
    # Given an archive whose every file was screened, a copy and a broken file among them
    expected = draw_archive(tmp_path / "archive", 20)
    batch = scene.load([scene.item(name) for name in expected])
    finish_loading(scene.engine, batch, "f" * 64)
    (chunk,) = scene.chunks(batch)
    claim = scene.claim(chunk)
    outcomes = [
        Rejected(item_id=one.item_id, reason="not_an_image")
        if expected[one.path] == "rejected"
        else scene.scored(one, str(max(2, number)), referred=expected[one.path] == "referred")
        for number, one in enumerate(claim.items)
    ]
    scene.record(claim, *outcomes)

    # If the ledger is damaged, or not
    scene.sql(damage)

    # Then that is what is counted
    outcome = Outcome()
    outcome.count_batch(scene.engine, batch, tmp_path / "archive", expected)
    assert (outcome.lost, outcome.doubled) == (lost, doubled)


def test_a_missed_bar_fails_the_campaign() -> None:
    # Given a campaign in which all went well, with one image that was quarantined by three kills
    good: dict[str, Any] = {"kills": Counter(child=3), "quarantined": 1, "recoveries": [44.0] * 100}
    assert Outcome(**good).passed

    # If anything goes wrong
    # Then it has not passed
    wrongs: tuple[dict[str, Any], ...] = (
        {"lost": 1},
        {"doubled": 1},
        {"unfinished": 1},
        {"findings": ["counters_match_items"]},
        {"quarantined": 2},
        {"recoveries": [44.0] * 90 + [46.0] * 10},
    )
    for wrong in wrongs:
        assert not Outcome(**(good | wrong)).passed
