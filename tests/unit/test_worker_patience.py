"""Patience with a database that is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import exc

import worker.patience
from worker.patience import insist, pause, wait


def away() -> exc.OperationalError:
    return exc.OperationalError("", None, Exception(), connection_invalidated=True)


def failing(*errors: Exception) -> Callable[[], str]:
    remaining: Iterator[Exception] = iter(errors)

    def call() -> str:
        for error in remaining:
            raise error
        return "done"

    return call


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.patience, "_FIRST_PAUSE", 0.001)


def test_what_passes_by_itself_is_tried_again() -> None:
    assert insist(failing(away(), away(), away()), seconds=5, until=lambda: False) == "done"


def test_a_bug_is_not_tried_again() -> None:
    with pytest.raises(exc.ProgrammingError):
        insist(failing(exc.ProgrammingError("", None, Exception())), seconds=5, until=lambda: False)


def test_patience_ends_with_the_errors_own_name() -> None:
    with pytest.raises(exc.OperationalError):
        insist(failing(*[away()] * 1000), seconds=0.05, until=lambda: False)


def test_a_worker_that_is_to_stop_waits_no_longer() -> None:
    with pytest.raises(exc.OperationalError):
        insist(failing(away(), away()), seconds=60, until=lambda: True)
    assert wait(60, lambda: True)


@pytest.mark.parametrize("attempt", [1, 5, 20, 10_000])
def test_pauses_grow_with_jitter_up_to_a_bound(attempt: int) -> None:
    pauses = [pause(attempt, longest=60) for _ in range(50)]

    assert max(pauses) <= 60
    assert len(set(pauses)) > 1
