"""Sixty seeded kills lose nothing and count nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.campaign import draw_schedule, run_campaign

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(900)
def test_sixty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    outcome = run_campaign(tmp_path, seed=1, kills=60, images=2000)

    assert outcome.passed, outcome.line()
    # And it was a campaign: every kind of process died, and claims were taken over
    assert outcome.kills.total() == 60
    assert len(outcome.kills) == 6
    assert outcome.recoveries


def test_a_seed_draws_its_schedule_again() -> None:
    assert draw_schedule(7, 20, "short") == draw_schedule(7, 20, "short")
    assert draw_schedule(7, 20, "short") != draw_schedule(8, 20, "short")
