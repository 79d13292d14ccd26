"""Faults of workers: killed at any step, out of memory, told to stop, hung, or handed a bad image (table A)."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

MEGABYTE = 1 << 20

#: Where a fault takes its time and has nothing to do with the database.
one_database = pytest.mark.parametrize("ledger", ["postgres"], indirect=True)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.archive import Archive
    from tests.stack import Stack


@pytest.mark.parametrize("step", ["after_claim", "after_predict", "after_commit"])
def test_a1_a_chunk_whose_worker_was_killed_at_a_named_step_runs_again(
    archive: Archive, stack: Stack, tmp_path: Path, step: str
) -> None:
    # Given a worker that is killed once at this step
    batch = archive.load(archive.draw(40))
    struck = tmp_path / "struck"
    stack.start_feeder()
    stack.start_worker(WORKER_FAILPOINT=step, WORKER_FAILPOINT_FILE=str(struck))

    # If it was killed indeed, which after its commit may be seen later than what it committed, and its pool child came
    # back
    stack.until(struck.exists)
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then nothing is lost and nothing is there twice
    assert archive.counts(batch).done == 40
    assert archive.number("SELECT count(*) FROM result") == 40


def test_a1_a_killed_workers_chunk_is_taken_over_by_another(archive: Archive, stack: Stack) -> None:
    # Given a slow worker in the middle of a chunk
    batch = archive.load(archive.draw(64))
    stack.start_feeder()
    victim = stack.start_worker("victim", **stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If it is killed with all its children and another one listens
    os.killpg(victim.pid, signal.SIGKILL)
    stack.let_go()
    stack.start_worker("heir")
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then all is done, once
    assert archive.counts(batch).done == 64
    assert archive.number("SELECT count(*) FROM result") == 64
    assert archive.number("SELECT max(crashes) FROM chunk") == 1


@one_database
def test_a2_an_image_that_eats_all_memory_is_quarantined_and_the_others_are_done(
    archive: Archive, stack: Stack, memory_limit: Callable[[int, int], None]
) -> None:
    # Given a worker under a limit on memory, and one image that makes its child exceed it
    batch = archive.load(archive.draw(12))
    death = {"LIGHT_VICTIM": "7", "LIGHT_DEATH": "memory"}
    worker = stack.start_worker(**death, WORKER_LEASE_SECONDS="1.5", WORKER_QUIET_SECONDS="0.5")
    memory_limit(worker.pid, 600 * MEGABYTE)
    for child in psutil.Process(worker.pid).children(recursive=True):
        memory_limit(child.pid, 600 * MEGABYTE)

    # If the kernel kills the child each time
    stack.start_feeder()
    stack.until(lambda: archive.counts(batch).open == 0, 90)

    # Then that image alone is quarantined, after three tries, and the worker itself has lived
    counts = archive.counts(batch)
    assert (counts.done, counts.quarantined) == (11, 1)
    assert archive.states(batch)["007.png"] == "quarantined"
    assert archive.number("SELECT max(marks) FROM item") == 3
    assert worker.poll() is None
    stack.stop()


@one_database
def test_a3_an_image_that_ends_the_whole_container_cannot_make_a_crash_loop(archive: Archive, stack: Stack) -> None:
    # Given one image that kills every process of the worker that opens it, and a supervisor that starts it again
    batch = archive.load(archive.draw(12))
    settings = {
        "LIGHT_VICTIM": "7",
        "LIGHT_DEATH": "host",
        "WORKER_LEASE_SECONDS": "1.5",
        "WORKER_QUIET_SECONDS": "0.5",
    }
    stack.start_feeder()
    started = [stack.start_worker(**settings)]

    def is_finished() -> bool:
        if started[-1].poll() is not None:
            started.append(stack.start_worker(**settings))
        return archive.counts(batch).open == 0

    # If it goes on
    stack.until(is_finished, 90)

    # Then that image alone is quarantined, and it cost three deaths beside the first
    counts = archive.counts(batch)
    assert (counts.done, counts.quarantined) == (11, 1)
    assert archive.states(batch)["007.png"] == "quarantined"
    assert archive.number("SELECT max(crashes) FROM chunk") == 4
    assert len(started) == 5


@pytest.mark.parametrize(("remapped", "signals"), [(False, 1), (True, 1), (True, 2)])
def test_a4_a_worker_told_to_stop_gives_its_chunk_back(
    archive: Archive, stack: Stack, *, remapped: bool, signals: int
) -> None:
    # Given a worker in the middle of a long chunk
    batch = archive.load(archive.draw(200))
    remap = {"REMAP_SIGTERM": "SIGQUIT"} if remapped else {}
    feeder = stack.start_feeder()
    worker = stack.start_worker(**stack.hold(), **remap)
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)
    feeder.terminate()

    # If it gets SIGTERM, or the impatient send another one, which makes Celery end the busy child by a signal
    worker.terminate()
    if signals > 1:
        stack.await_log("w1", "Initiating Soft Shutdown")
        worker.terminate()
        stack.await_log("w1", "Waiting gracefully")
    stack.let_go()
    stack.until(lambda: archive.number("SELECT count(*) FROM chunk WHERE state = 'open'") == 1)

    # Then it ends, what it did is recorded, the rest is open, and no crash is charged
    worker.wait(40)
    counts = archive.counts(batch)
    assert counts.done + counts.open == 200
    assert counts.done > 8
    assert archive.number("SELECT crashes FROM chunk") == 0


@one_database
def test_a5_a_hang_that_serves_no_signal_is_ended_and_counted(archive: Archive, stack: Stack) -> None:
    # Given an image whose decoder hangs with the interpreter's lock in its hand
    batch = archive.load(archive.draw(6))
    limits = {"WORKER_STALL_SECONDS": "1", "WORKER_HARD_LIMIT_SECONDS": "2", "WORKER_VISIBILITY_SECONDS": "60"}
    stack.start_feeder()
    stack.start_worker(LIGHT_VICTIM="3", LIGHT_DEATH="hang", WORKER_LEASE_SECONDS="1.5", **limits)

    # If the hard limit passes, again and again
    stack.until(lambda: archive.counts(batch).open == 0, 90)

    # Then the child was killed from outside each time, and the image alone is quarantined
    counts = archive.counts(batch)
    assert (counts.done, counts.quarantined) == (5, 1)
    assert archive.states(batch)["003.png"] == "quarantined"


def test_a6_one_bad_image_of_many_leaves_the_others_alone(archive: Archive, stack: Stack) -> None:
    # Given a chunk of 256 with one file that is no image
    good = archive.draw(255)
    batch = archive.load([*good[:100], archive.spoil("bad.png", b"no image"), *good[100:]])

    # If a worker screens it
    stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then 255 have their verdict
    counts = archive.counts(batch)
    assert (counts.done + counts.referred, counts.rejected, counts.reasons) == (255, 1, {"not_an_image": 1})
    assert archive.number("SELECT max(crashes) FROM chunk") == 0


@one_database
def test_a7_the_process_that_forks_has_loaded_no_network(archive: Archive, stack: Stack) -> None:
    # Given a worker that has screened something, with the real network's module as its classifier
    batch = archive.load(archive.draw(4))
    stack.start_feeder()
    worker = stack.start_worker(WORKER_CLASSIFIER="tests.light_network:LightNetwork")
    stack.until(lambda: archive.counts(batch).open == 0)

    # If the libraries are listed that its processes have mapped
    parent = psutil.Process(worker.pid)
    (child,) = parent.children()

    # Then the child has TensorFlow, and the process that forked it has not
    assert any("tensorflow" in mapped.path for mapped in child.memory_maps())
    assert not any("tensorflow" in mapped.path for mapped in parent.memory_maps())
