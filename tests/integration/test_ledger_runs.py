"""Training runs, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from db.errors import LeaseLost, UnknownRun, WrongRunState
from db.models import activate_model, active_model, register_model
from db.run_log import list_events
from db.runs import (
    MOST_CRASHES,
    RunRow,
    beat_run,
    cancel_run,
    claim_run,
    count_gate_use,
    due_runs,
    fail_run,
    finish_run,
    get_run,
    list_runs,
    note_model,
    queue_run,
    queue_scheduled_run,
    release_run,
    report_epoch,
    report_event,
)
from db.tables import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Scene


def claim(scene: Scene, run: int) -> RunRow | None:
    """Claim a run as a worker does."""
    return claim_run(scene.engine, run, worker="w")


def leave(scene: Scene, run: int) -> None:
    """Let a run's worker be silent for an hour: it was killed."""
    scene.sql("UPDATE training_run SET heartbeat = heartbeat - 3600 WHERE id = :r", r=run)


def test_a_run_goes_from_queue_to_model(scene: Scene) -> None:
    # Given a queued run
    run = queue_run(scene.engine, {"recipe": "default"}, "me")
    assert due_runs(scene.engine) == [run]

    # If a worker takes it, reports and finishes
    claimed = claim(scene, run)
    assert claimed is not None
    assert (claimed.state, claimed.attempt, claimed.params) == (RunState.RUNNING, 1, {"recipe": "default"})
    report_epoch(scene.engine, run, 1, {"epoch": 3, "epochs": 15})
    beat_run(scene.engine, run, 1)
    assert get_run(scene.engine, run).progress == {"epoch": 3, "epochs": 15}
    note_model(scene.engine, run, 1, "b" * 64)
    assert not finish_run(scene.engine, run, 1, gate={"verdict": "undecided"})

    # Then it has ended, with its model and what the gate said
    ended = get_run(scene.engine, run)
    assert (ended.state, ended.model_digest, ended.gate) == (RunState.DONE, "b" * 64, {"verdict": "undecided"})
    assert due_runs(scene.engine) == []
    assert claim(scene, run) is None
    with pytest.raises(LeaseLost):
        beat_run(scene.engine, run, 1)
    kinds = [event.kind for event in list_events(scene.engine, run)]
    assert kinds == ["queued", "claimed", "epoch", "model", "done"]
    with pytest.raises(WrongRunState, match="is done"):
        cancel_run(scene.engine, run, "me")


def test_one_run_at_a_time_is_worked_on(scene: Scene) -> None:
    # Given two queued runs, of which one is claimed
    first, second = (queue_run(scene.engine, {}, "me") for _ in range(2))
    assert due_runs(scene.engine) == [first, second]
    assert claim(scene, first) is not None

    # If the other is asked for, by itself or by a feeder
    # Then it waits until the first has ended
    assert claim(scene, second) is None
    assert due_runs(scene.engine) == []
    fail_run(scene.engine, first, 1, "The data folder cannot be used.")
    assert get_run(scene.engine, first).progress == {"reason": "The data folder cannot be used."}
    assert due_runs(scene.engine) == [second]
    assert claim(scene, second) is not None
    assert [row.id for row in list_runs(scene.engine)] == [second, first]


def test_of_many_workers_one_gets_the_run(scene: Scene) -> None:
    run = queue_run(scene.engine, {}, "me")

    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda _: claim(scene, run), range(8)))

    assert sum(claim is not None for claim in claims) == 1


def test_a_killed_workers_run_is_taken_over_and_the_zombie_is_fenced(scene: Scene) -> None:
    # Given a run whose worker has not been heard of
    run = queue_run(scene.engine, {}, "me")
    claim(scene, run)
    assert claim(scene, run) is None
    leave(scene, run)
    assert due_runs(scene.engine) == [run]

    # If another one takes it over
    again = claim(scene, run)
    assert again is not None
    assert again.attempt == 2

    # Then the first one writes nothing more
    writes: tuple[Callable[[], object], ...] = (
        lambda: report_epoch(scene.engine, run, 1, {"epoch": 1}),
        lambda: report_event(scene.engine, run, 1, "gate", {}),
        lambda: note_model(scene.engine, run, 1, "c" * 64),
        lambda: finish_run(scene.engine, run, 1, gate=None),
        lambda: release_run(scene.engine, run, 1),
        lambda: fail_run(scene.engine, run, 1, "worse"),
    )
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert get_run(scene.engine, run).progress is None


def test_a_cancelled_run_ends_at_its_workers_next_report(scene: Scene) -> None:
    run = queue_run(scene.engine, {}, "me")
    claim(scene, run)

    assert cancel_run(scene.engine, run, "me")
    assert not cancel_run(scene.engine, run, "me")

    with pytest.raises(LeaseLost):
        beat_run(scene.engine, run, 1)
    assert [action for (action,) in scene.sql("SELECT action FROM audit ORDER BY id")] == ["queue_run", "cancel_run"]
    for ask in (lambda: cancel_run(scene.engine, 99, "me"), lambda: get_run(scene.engine, 99)):
        with pytest.raises(UnknownRun):
            ask()


def test_schedules_that_overlap_never_start_two_runs(scene: Scene) -> None:
    # Given two schedules that strike at once
    with ThreadPoolExecutor(4) as pool:
        queued = list(pool.map(lambda _: queue_scheduled_run(scene.engine, {}, "beat", least_labels=0), range(4)))

    # Then one run is queued, and none is added while it is worked on
    (run,) = [one for one in queued if one is not None]
    assert len(list_runs(scene.engine)) == 1
    claim(scene, run)
    assert queue_scheduled_run(scene.engine, {}, "beat", least_labels=0) is None
    cancel_run(scene.engine, run, "me")
    assert queue_scheduled_run(scene.engine, {}, "beat", least_labels=0) is not None


def test_a_schedule_waits_for_something_to_learn(scene: Scene) -> None:
    # Given a batch with one confirmed diagnosis
    batch, _ = scene.open(2)
    items = [item for (item,) in scene.sql("SELECT id FROM item WHERE batch_id = :b ORDER BY id", b=batch)]

    scene.diagnose(items[0])

    # If the schedule wants two, or one
    assert queue_scheduled_run(scene.engine, {}, "beat", least_labels=2) is None
    run = queue_scheduled_run(scene.engine, {}, "beat", least_labels=1)

    # Then it is queued with one, and what was there before does not count again
    assert run is not None
    cancel_run(scene.engine, run, "me")
    scene.sql("UPDATE training_run SET created_at = created_at + 10")
    assert queue_scheduled_run(scene.engine, {}, "beat", least_labels=1) is None
    scene.sql("UPDATE training_run SET created_at = created_at - 3600")
    assert queue_scheduled_run(scene.engine, {}, "beat", least_labels=1) is not None


def test_a_run_that_costs_worker_after_worker_is_given_up_unless_it_gets_on(scene: Scene) -> None:
    # Given a run that has cost all but one of the workers it may cost
    run = queue_run(scene.engine, {}, "me")
    for _ in range(MOST_CRASHES):
        assert claim(scene, run) is not None
        leave(scene, run)
    # Which is forgiven with an epoch
    again = get_run(scene.engine, run).attempt
    scene.sql("UPDATE training_run SET heartbeat = heartbeat + 7200")
    report_epoch(scene.engine, run, again, {"epoch": 1})

    # If it costs as many again, and one more
    for lost in range(MOST_CRASHES):
        leave(scene, run)
        assert (claim(scene, run) is None) == (lost == MOST_CRASHES - 1)

    # Then it has failed, and says why
    ended = get_run(scene.engine, run)
    assert ended.state is RunState.FAILED
    assert list_events(scene.engine, run)[-1].data == ended.progress
    assert "5 workers in a row" in str(ended.progress)
    assert due_runs(scene.engine) == []


def test_a_run_that_is_given_back_costs_no_worker(scene: Scene) -> None:
    run = queue_run(scene.engine, {}, "me")
    for attempt in range(1, 2 * MOST_CRASHES):
        assert claim(scene, run) is not None
        release_run(scene.engine, run, attempt)

    assert due_runs(scene.engine) == [run]
    assert get_run(scene.engine, run).crashes == 0


def test_a_model_is_promoted_with_the_runs_end_and_only_over_what_it_was_compared_with(scene: Scene) -> None:
    # Given an active model, a candidate, and another one that somebody promotes meanwhile
    for digest in ("a" * 64, "b" * 64, "c" * 64):
        register_model(scene.engine, digest=digest, name="m", backbone="b", metrics={}, data_digest="d" * 64)
    activate_model(scene.engine, "a" * 64, actor="me", why="first")
    run = queue_run(scene.engine, {}, "me")
    claim(scene, run)
    note_model(scene.engine, run, 1, "b" * 64)
    activate_model(scene.engine, "c" * 64, actor="me", why="meanwhile")

    # If the run ends with the gate's yes
    # Then that one stays
    assert not finish_run(scene.engine, run, 1, gate={"verdict": "promote"}, promote_over="a" * 64)
    active = active_model(scene.engine)
    assert active is not None
    assert active.digest == "c" * 64
    # And a run that was compared with it takes its place
    second = queue_run(scene.engine, {}, "me")
    claim(scene, second)
    note_model(scene.engine, second, 1, "b" * 64)
    assert finish_run(scene.engine, second, 1, gate={"verdict": "promote"}, promote_over="c" * 64)
    active = active_model(scene.engine)
    assert active is not None
    assert active.digest == "b" * 64
    assert scene.sql("SELECT detail FROM audit WHERE action = 'activate_model' ORDER BY id DESC LIMIT 1") == [
        (f"the gate, run {second}",)
    ]


def test_every_use_of_a_gate_set_is_counted(scene: Scene) -> None:
    run = queue_run(scene.engine, {}, "me")

    assert [count_gate_use(scene.engine, run, "f" * 64) for _ in range(3)] == [1, 2, 3]
    assert count_gate_use(scene.engine, run, "e" * 64) == 1
