"""Training runs, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from db.errors import LeaseLost, UnknownRun, WrongRunState
from db.runs import (
    cancel_run,
    claim_run,
    due_runs,
    fail_run,
    finish_run,
    get_run,
    list_runs,
    queue_run,
    queue_run_unless_one_waits,
    report_progress,
)
from db.tables import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Scene


def leave(scene: Scene, run: int) -> None:
    """Let a run's worker be silent for an hour: it was killed."""
    scene.sql("UPDATE training_run SET heartbeat = heartbeat - 3600 WHERE id = :r", r=run)


def test_a_run_goes_from_queue_to_model(scene: Scene) -> None:
    # Given a queued run
    run = queue_run(scene.engine, {"recipe": "default"}, "me")
    assert due_runs(scene.engine) == [run]

    # If a worker takes it, reports and finishes
    claimed = claim_run(scene.engine, run)
    assert claimed is not None
    assert (claimed.state, claimed.attempt, claimed.params) == (RunState.RUNNING, 1, {"recipe": "default"})
    report_progress(scene.engine, run, 1, {"epoch": 3, "epochs": 15})
    report_progress(scene.engine, run, 1)
    assert get_run(scene.engine, run).progress == {"epoch": 3, "epochs": 15}
    finish_run(scene.engine, run, 1, model_digest="b" * 64, gate={"verdict": "promote"})

    # Then it has ended, with its model and what the gate said
    ended = get_run(scene.engine, run)
    assert (ended.state, ended.model_digest, ended.gate) == (RunState.DONE, "b" * 64, {"verdict": "promote"})
    assert due_runs(scene.engine) == []
    assert claim_run(scene.engine, run) is None
    with pytest.raises(LeaseLost):
        report_progress(scene.engine, run, 1)
    with pytest.raises(WrongRunState, match="is done"):
        cancel_run(scene.engine, run, "me")


def test_one_run_at_a_time_is_worked_on(scene: Scene) -> None:
    # Given two queued runs, of which one is claimed
    first, second = (queue_run(scene.engine, {}, "me") for _ in range(2))
    assert due_runs(scene.engine) == [first, second]
    assert claim_run(scene.engine, first) is not None

    # If the other is asked for, by itself or by a feeder
    # Then it waits until the first has ended
    assert claim_run(scene.engine, second) is None
    assert due_runs(scene.engine) == []
    fail_run(scene.engine, first, 1, "The data folder cannot be used.")
    assert get_run(scene.engine, first).progress == {"reason": "The data folder cannot be used."}
    assert due_runs(scene.engine) == [second]
    assert claim_run(scene.engine, second) is not None
    assert [row.id for row in list_runs(scene.engine)] == [second, first]


def test_of_many_workers_one_gets_the_run(scene: Scene) -> None:
    run = queue_run(scene.engine, {}, "me")

    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda _: claim_run(scene.engine, run), range(8)))

    assert sum(claim is not None for claim in claims) == 1


def test_a_killed_workers_run_is_taken_over_and_the_zombie_is_fenced(scene: Scene) -> None:
    # Given a run whose worker has not been heard of
    run = queue_run(scene.engine, {}, "me")
    claim_run(scene.engine, run)
    assert claim_run(scene.engine, run) is None
    leave(scene, run)
    assert due_runs(scene.engine) == [run]

    # If another one takes it over
    again = claim_run(scene.engine, run)
    assert again is not None
    assert again.attempt == 2

    # Then the first one writes nothing more
    writes: tuple[Callable[[], None], ...] = (
        lambda: report_progress(scene.engine, run, 1, {"epoch": 1}),
        lambda: finish_run(scene.engine, run, 1, model_digest="c" * 64, gate=None),
        lambda: fail_run(scene.engine, run, 1, "worse"),
    )
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert get_run(scene.engine, run).progress is None


def test_a_cancelled_run_ends_at_its_workers_next_report(scene: Scene) -> None:
    run = queue_run(scene.engine, {}, "me")
    claim_run(scene.engine, run)

    assert cancel_run(scene.engine, run, "me")
    assert not cancel_run(scene.engine, run, "me")

    with pytest.raises(LeaseLost):
        report_progress(scene.engine, run, 1)
    assert [action for (action,) in scene.sql("SELECT action FROM audit ORDER BY id")] == ["queue_run", "cancel_run"]
    for ask in (lambda: cancel_run(scene.engine, 99, "me"), lambda: get_run(scene.engine, 99)):
        with pytest.raises(UnknownRun):
            ask()


def test_schedules_that_overlap_never_start_two_runs(scene: Scene) -> None:
    # Given two schedules that strike at once
    with ThreadPoolExecutor(4) as pool:
        queued = list(pool.map(lambda _: queue_run_unless_one_waits(scene.engine, {}, "beat"), range(4)))

    # Then one run is queued, and none is added while it is worked on
    (run,) = [one for one in queued if one is not None]
    assert len(list_runs(scene.engine)) == 1
    claim_run(scene.engine, run)
    assert queue_run_unless_one_waits(scene.engine, {}, "beat") is None
    cancel_run(scene.engine, run, "me")
    assert queue_run_unless_one_waits(scene.engine, {}, "beat") is not None
