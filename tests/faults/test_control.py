"""Pausing, cancelling and retrying while workers are at it: in racing transactions, and with real workers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from db.chunks import Claim, claim_chunk, claim_next, extend_lease, release_chunk
from db.control import cancel_batch, pause_batch, resume_batch, retry_batch
from db.errors import LeaseLost
from db.health import check_batch
from model.errors import RejectReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from tests.archive import Archive
    from tests.conftest import Scene
    from tests.stack import Stack


@contextmanager
def held_after_the_look_at_the_batch(engine: Engine) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Stop a claim between its look at the batch and its claim; gives what says that it looked and lets it go on."""
    looked, go_on = threading.Event(), threading.Event()

    def hold(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT batch.id") and "batch.model_digest" in statement:
            looked.set()
            assert go_on.wait(30)

    event.listen(engine, "after_cursor_execute", hold)
    try:
        yield looked, go_on
    finally:
        go_on.set()
        event.remove(engine, "after_cursor_execute", hold)


@pytest.mark.parametrize("stop", [pause_batch, cancel_batch])
@pytest.mark.parametrize("claim_one", [claim_chunk, claim_next])
def test_a_stop_returns_only_when_claims_in_flight_have_ended(
    scene: Scene, stop: Callable[[Engine, int, str], bool], claim_one: Callable[..., Claim | None]
) -> None:
    batch, (chunk,) = scene.open(2)
    named = chunk if claim_one is claim_chunk else batch
    with ThreadPoolExecutor(2) as pool, held_after_the_look_at_the_batch(scene.engine) as (looked, go_on):
        # Given a claim that has seen the batch open, and has not claimed yet
        claiming = pool.submit(claim_one, scene.engine, named, worker="w1", lease_seconds=30)
        assert looked.wait(30)

        # If the batch is stopped at that moment
        stopping = pool.submit(stop, scene.engine, batch, "me")

        # Then it is not said to be stopped before the claim is through
        with pytest.raises(TimeoutError):
            stopping.result(timeout=0.3)
        go_on.set()
        claim = claiming.result(timeout=30)
        assert stopping.result(timeout=30)
    assert claim is not None
    # And the chunk is finished after a pause, and fenced after a cancel
    if stop is pause_batch:
        assert scene.finish(claim) == 0
    else:
        with pytest.raises(LeaseLost):
            scene.finish(claim)
    assert check_batch(scene.engine, batch) == []


def test_no_chunk_of_many_is_claimed_once_a_pause_has_returned(scene: Scene) -> None:
    # Given four workers that claim and give back, each its chunk, over and over
    batch, chunks = scene.open(*[1] * 4)
    claimed, refused, stop = threading.Semaphore(0), [threading.Event() for _ in chunks], threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            claim = claim_chunk(scene.engine, chunks[number], worker=f"w{number}", lease_seconds=30)
            if claim is None:
                refused[number].set()
            else:
                claimed.release()
                release_chunk(scene.engine, claim.chunk_id, claim.attempt)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(8):
                assert claimed.acquire(timeout=30)

            # If the batch is paused in the midst of it
            pause_batch(scene.engine, batch, "me")
            ((at_once,),) = scene.sql("SELECT sum(attempt) FROM chunk")
            # And every worker has tried once more
            assert all(one.wait(30) for one in refused)
        finally:
            stop.set()
        for one in working:
            one.result(timeout=60)

    # Then no attempt was begun after it returned
    assert scene.sql("SELECT sum(attempt) FROM chunk") == [(at_once,)]


def test_a_retry_meets_a_worker_that_rejects_and_the_counts_stay_true(scene: Scene) -> None:
    from db.chunks import Rejected

    # Given a worker that rejects a batch's items one by one
    batch, chunks = scene.open(*[3] * 20)
    first = threading.Event()

    def reject() -> None:
        for chunk in chunks:
            claim = scene.claim(chunk)
            for one in claim.items:
                scene.record(claim, Rejected(item_id=one.item_id, reason="truncated"))
                first.set()

    # If the batch is retried all the while
    retried = 0
    with ThreadPoolExecutor(1) as pool:
        rejecting = pool.submit(reject)
        assert first.wait(30)
        while not rejecting.done():
            retried += retry_batch(scene.engine, batch, "me").reopened
            assert check_batch(scene.engine, batch) == []
        rejecting.result()

    # Then in the end every item has been opened again
    retried += retry_batch(scene.engine, batch, "me").reopened
    assert scene.sql("SELECT count(*) FROM item WHERE state = 'open'") == [(60,)]
    assert retried == 60
    assert check_batch(scene.engine, batch) == []


def test_a_paused_batchs_running_chunk_is_finished_and_the_next_waits(archive: Archive, stack: Stack) -> None:
    # Given a worker in the middle of the first of four chunks, with the second begun and the others rung
    rows = archive.draw(96)
    batch = archive.load(rows[:24], rows[24:48], rows[48:72], rows[72:])
    stack.start_feeder()
    stack.start_worker(**stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)
    stack.until(lambda: archive.number("SELECT count(*) FROM chunk WHERE state = 'running'") == 2)

    # If the batch is paused
    pause_batch(archive.engine, batch, "me")
    attempts = archive.number("SELECT sum(attempt) FROM chunk")
    stack.let_go()

    # Then what runs is finished, and nothing else was begun when the worker has long been idle
    stack.until(lambda: archive.number("SELECT count(*) FROM chunk WHERE state = 'running'") == 0)
    done = archive.counts(batch).done
    assert archive.number("SELECT sum(attempt) FROM chunk") == attempts == 2
    assert done == 24 * archive.number("SELECT count(*) FROM chunk WHERE state = 'done'")
    # And it goes on when it is resumed
    resume_batch(archive.engine, batch, "me")
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 96
    assert archive.number("SELECT sum(crashes) FROM chunk") == 0


def test_a_cancelled_batchs_worker_writes_nothing_more(archive: Archive, stack: Stack) -> None:
    # Given a worker in the middle of a long chunk
    batch = archive.load(archive.draw(160))
    stack.start_feeder()
    stack.start_worker(**stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If the batch is cancelled
    cancel_batch(archive.engine, batch, "me")
    results = archive.number("SELECT count(*) FROM result")
    (chunk,) = archive.chunks(batch)
    stack.let_go()

    # Then its worker finds out, has written nothing since, and no crash is charged
    stack.await_log("w1", '"ending": "lease_lost"')
    assert archive.number("SELECT count(*) FROM result") == results
    assert archive.counts(batch).done == results
    with pytest.raises(LeaseLost):
        extend_lease(archive.engine, chunk, 1, lease_seconds=30)
    assert archive.number("SELECT crashes FROM chunk") == 0


def test_what_was_missing_is_screened_after_a_retry_once_it_is_there(archive: Archive, stack: Stack) -> None:
    # Given a batch of which one file was away and one was broken when they were opened
    rows = archive.draw(8)
    mended = (archive.root / "000.png").read_bytes()
    away = archive.root.with_name("away.png")
    (archive.root / "000.png").rename(away)
    (archive.root / "001.png").write_bytes(b"no image")
    batch = archive.load(rows)
    stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).reasons == {RejectReason.MISSING_IMAGE: 1, RejectReason.NOT_AN_IMAGE: 1}

    # If both are mended, and the missing one is retried
    away.rename(archive.root / "000.png")
    (archive.root / "001.png").write_bytes(mended)
    retry_batch(archive.engine, batch, "me", reason=RejectReason.MISSING_IMAGE)
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then it has its verdict, and the other keeps its reason until it is retried too
    assert archive.counts(batch).reasons == {RejectReason.NOT_AN_IMAGE: 1}
    retry_batch(archive.engine, batch, "me")
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 8
