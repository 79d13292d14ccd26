"""Faults of Redis: restarted, wiped, away, full, and messages that are lost, repeated or unknown (table B)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.archive import MODEL
from worker.contract import CONTRACT_VERSION, SCREEN_CHUNK, SCREENING_QUEUE, ClaimCheck
from worker.doorbell import Doorbell

if TYPE_CHECKING:
    from tests.archive import Archive
    from tests.servers import RedisServer
    from tests.stack import Stack


def honest(archive: Archive, batch: int) -> ClaimCheck:
    (chunk,) = archive.chunks(batch)
    return ClaimCheck(version=CONTRACT_VERSION, batch=batch, chunk=chunk, items=1, model=MODEL)


@pytest.mark.parametrize("moment", ["idle", "busy", "full"])
def test_b1_workers_go_on_after_redis_was_restarted(
    archive: Archive, stack: Stack, redis_server: RedisServer, moment: str
) -> None:
    # Given a worker that has done something and waits, is in the middle of a chunk, or has a queue full of others
    rows = archive.draw(120)
    first = archive.load(rows[:8])
    stack.start_feeder()
    worker = stack.start_worker(LIGHT_SECONDS="0.3" if moment != "idle" else "0", WORKER_RECORD_SECONDS="0.1")
    stack.until(lambda: archive.counts(first).open == 0)
    if moment == "full":
        batch = archive.load(*(rows[start : start + 4] for start in range(8, 120, 4)))
        stack.until(lambda: redis_server.client.llen(SCREENING_QUEUE) > 4)
    elif moment == "busy":
        batch = archive.load(rows[8:])
        stack.until(lambda: archive.number("SELECT count(*) FROM result") > 8)

    # If Redis, which keeps what it is told, is killed and started again
    redis_server.kill()
    redis_server.start()
    if moment == "idle":
        batch = archive.load(rows[8:])

    # Then everything is done by the same worker, and nobody is charged
    stack.until(lambda: archive.counts(batch).open == 0, 90)
    assert archive.counts(batch).done == 112
    assert archive.number("SELECT count(*) FROM result") == 120
    assert archive.number("SELECT sum(crashes) FROM chunk") == 0
    assert worker.poll() is None


def test_b2_everything_finishes_after_redis_was_wiped(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a worker in the middle of an archive, its queue full
    rows = archive.draw(80)
    batch = archive.load(*(rows[start : start + 4] for start in range(0, 80, 4)))
    stack.start_feeder()
    stack.start_worker(LIGHT_SECONDS="0.1")
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 4)

    # If all of Redis is lost
    redis_server.kill()
    redis_server.forget()
    redis_server.start()

    # Then every image has its one result all the same
    stack.until(lambda: archive.counts(batch).open == 0, 60)
    assert archive.counts(batch).done == 80
    assert archive.number("SELECT count(*) FROM result") == 80


def test_b3_what_is_submitted_while_redis_is_down_is_screened_when_it_is_back(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a Redis that is down
    archive.activate_model()
    archive.draw(10)
    redis_server.kill()

    # If an archive is submitted
    said = stack.command("submit", archive.root, code=3)

    # Then it is saved, and a sentence says so
    assert "safe in the ledger" in said.stderr
    batch = archive.number("SELECT max(id) FROM batch")
    assert archive.counts(batch).open == 10
    # And it is screened without another word once Redis is back
    stack.start_feeder()
    stack.start_worker()
    redis_server.start()
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 10


def test_b4_a_message_that_was_lost_on_its_way_is_rung_again(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a chunk that was rung, and whose message died with the client that took it from the queue
    batch = archive.load(archive.draw(5))
    stack.start_feeder()
    with redis_server.client as client:
        stack.until(lambda: client.rpop(SCREENING_QUEUE))
        assert archive.number("SELECT count(*) FROM chunk WHERE rung_at IS NOT NULL") == 1

    # If a worker comes
    stack.start_worker()

    # Then it is rung for again
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 5


def test_b5_a_message_that_comes_again_while_the_first_run_goes_on_changes_nothing(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given two workers, one of them in the middle of a chunk
    batch = archive.load(archive.draw(32))
    with Doorbell(redis_server.url) as doorbell:
        doorbell.ring(honest(archive, batch))
        for name in ("w1", "w2"):
            stack.start_worker(name, **stack.hold())
        stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

        # If its message is delivered again, and again
        for _ in range(10):
            doorbell.ring(honest(archive, batch))
        stack.until(lambda: doorbell.queue_depth() == 0)
    stack.let_go()
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then there was one run
    assert archive.number("SELECT attempt FROM chunk") == 1
    assert archive.number("SELECT count(*) FROM result") == 32


def test_b6_a_full_redis_is_said_so_and_nothing_is_evicted(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a Redis that is full, with a message in it
    redis_server.client.rpush("something", "kept")
    redis_server.client.config_set("maxmemory", "1")
    batch = archive.load(archive.draw(6))

    # If a feeder would ring
    stack.start_feeder()
    stack.await_log("feeder", "redis is away")

    # Then it says so, and what was there is there
    assert redis_server.client.lrange("something", 0, -1) == [b"kept"]
    assert archive.number("SELECT count(*) FROM chunk WHERE state = 'open'") == 1
    # And it goes on when there is room
    redis_server.client.config_set("maxmemory", "0")
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 6


def test_b7_an_unknown_task_and_a_newer_payload_lose_nothing(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a chunk that a newer producer has rung for, and a task that nobody here knows
    batch = archive.load(archive.draw(5))
    newer = honest(archive, batch).model_dump() | {"version": CONTRACT_VERSION + 1, "shape": "new"}
    with Celery(broker=redis_server.url, set_as_current=False) as app:
        app.conf.task_ignore_result = True
        app.send_task(SCREEN_CHUNK, args=(newer,), queue=SCREENING_QUEUE)
        app.send_task("lesion_screen.other", args=(newer,), queue=SCREENING_QUEUE)

    # If a worker meets them
    stack.start_worker()
    stack.await_log("w1", "message left to newer workers")
    assert archive.number("SELECT attempt FROM chunk") == 0

    # Then the chunk is done when it is rung for in this program's words
    stack.start_feeder()
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 5
