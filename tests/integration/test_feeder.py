"""The feeder rings for whatever is open, whatever becomes of Redis."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import redis
from celery import Celery
from sqlalchemy import text

from db.chunks import claim_chunk
from db.drift import get_drift
from db.runs import claim_run, fail_run, list_runs, queue_run
from worker.contract import QUEUE_RETRAINING
from worker.doorbell import Doorbell
from worker.errors import BrokerUnavailable
from worker.feeder import feed_once
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tests.archive import Archive
    from tests.servers import RedisServer
    from tests.stack import Stack


def settings(**given: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"quiet_seconds": 1000} | given)


def load_small_chunks(archive: Archive, count: int) -> int:
    return archive.load(*([row] for row in archive.draw(count)))


def test_the_queue_is_filled_to_its_depth_and_no_further(archive: Archive, redis_url: str) -> None:
    # Given more chunks than the queue may hold
    load_small_chunks(archive, 20)

    with Doorbell(redis_url) as doorbell:
        # If it is fed twice
        first = feed_once(archive.engine, doorbell, settings())
        second = feed_once(archive.engine, doorbell, settings())

        # Then it holds eight messages
        assert (first, second, doorbell.queue_depth()) == (8, 0, 8)


def test_the_depth_can_be_set(archive: Archive, redis_url: str) -> None:
    load_small_chunks(archive, 5)

    with Doorbell(redis_url) as doorbell:
        assert feed_once(archive.engine, doorbell, settings(queue_depth=3)) == 3


def test_each_running_worker_makes_the_queue_deeper(archive: Archive, redis_url: str) -> None:
    # Given two workers that hold leases, one of them two
    batch = load_small_chunks(archive, 30)
    first, second, third = archive.chunks(batch)[:3]
    for chunk, worker in ((first, "w1"), (second, "w2"), (third, "w2")):
        claim_chunk(archive.engine, chunk, worker=worker, lease_seconds=30)

    # If it is fed
    # Then twelve messages wait
    with Doorbell(redis_url) as doorbell:
        assert feed_once(archive.engine, doorbell, settings()) == 12


def test_a_dead_workers_chunk_overtakes_a_full_queue(archive: Archive, stack: Stack, redis_url: str) -> None:
    # Given a full queue, and a chunk that was claimed by a worker that died
    batch = load_small_chunks(archive, 12)
    dead = archive.chunks(batch)[-1]
    with Doorbell(redis_url) as doorbell:
        assert feed_once(archive.engine, doorbell, settings(queue_depth=8)) == 8
        assert claim_chunk(archive.engine, dead, worker="w0", lease_seconds=0) is not None

        # If the feeder comes by
        assert feed_once(archive.engine, doorbell, settings(queue_depth=8)) == 1

        # Then that chunk alone is added, and the worker that has time takes it first, and after it the others
        assert doorbell.queue_depth() == 9
    stack.start_worker()
    stack.until(lambda: archive.number("SELECT count(*) FROM chunk WHERE state = 'done'") == 12)
    assert archive.number("SELECT id FROM chunk WHERE state = 'done' ORDER BY recorded_at LIMIT 1") == dead


def test_a_message_is_small_and_names_ids_only(archive: Archive, redis_server: RedisServer) -> None:
    load_small_chunks(archive, 1)

    with Doorbell(redis_server.url) as doorbell:
        feed_once(archive.engine, doorbell, settings())

    with redis_server.client as client:
        (message,) = client.lrange("screening", 0, -1)
    assert len(message) < 2048
    assert b"000.png" not in message


def test_a_redis_that_is_away_is_said_so_and_no_chunk_counts_as_rung(
    archive: Archive, redis_server: RedisServer
) -> None:
    load_small_chunks(archive, 3)
    redis_server.kill()

    with Doorbell(redis_server.url) as doorbell:
        with pytest.raises(BrokerUnavailable) as refused:
            feed_once(archive.engine, doorbell, settings())
        assert redis_server.password not in str(refused.value)
        assert archive.number("SELECT count(*) FROM chunk WHERE rung_at IS NOT NULL") == 0

        # And the same doorbell rings once Redis is back
        redis_server.start()
        assert feed_once(archive.engine, doorbell, settings()) == 3


def test_a_wiped_redis_is_filled_again(archive: Archive, stack: Stack, redis_server: RedisServer) -> None:
    # Given a feeder that has rung for all chunks
    batch = load_small_chunks(archive, 4)
    stack.start_feeder()
    with Doorbell(redis_server.url) as doorbell:
        stack.until(lambda: doorbell.queue_depth() == 4)

        # If everything in Redis is deleted
        with redis_server.client as client:
            client.flushall()

        # Then the messages come again, and the batch can be finished
        stack.until(lambda: doorbell.queue_depth() == 4)
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)


def test_a_feeder_that_ends_measures_what_is_finished(archive: Archive, stack: Stack) -> None:
    # Given a batch that is finished a moment before the feeder is told to stop, as on one machine
    archive.activate_model()
    batch = archive.load(archive.draw(20))
    feeder = stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)

    # If it stops
    feeder.terminate()
    feeder.wait(20)

    # Then its drift was measured, of dark images that are far from the reference
    row = get_drift(archive.engine, batch)
    assert row is not None
    assert row.images == 20
    assert row.indices["malignant_score"] > 1 > row.indices["age"]


def test_a_feeder_outlives_its_redis(archive: Archive, stack: Stack, redis_server: RedisServer) -> None:
    # Given a feeder whose Redis died
    redis_server.kill()
    feeder = stack.start_feeder()
    stack.await_log("feeder", "redis is away")
    load_small_chunks(archive, 2)

    # If Redis comes back
    redis_server.start()

    # Then the feeder, the same process, rings
    with Doorbell(redis_server.url) as doorbell:
        stack.until(lambda: doorbell.queue_depth() == 2)
    assert feeder.poll() is None


def test_a_second_feeder_takes_over_at_once_where_the_first_is_stopped(archive: Archive, stack: Stack) -> None:
    # Given two feeders of which the first acts
    first = stack.start_feeder()
    holder = "SELECT count(*) FROM lease"
    stack.until(lambda: archive.number(holder) == 1)
    stack.start_feeder(WORKER_QUEUE_DEPTH="2")

    # If the first gets SIGTERM
    first.terminate()

    # Then it ends within a second or two, in order, and the other one rings
    assert first.wait(3) == 0
    load_small_chunks(archive, 5)
    with Doorbell(stack.environment["WORKER_BROKER_URL"]) as doorbell:
        stack.until(lambda: doorbell.queue_depth() == 2, 5)


def test_a_feeder_without_a_broker_says_what_is_missing(stack: Stack) -> None:
    del stack.environment["WORKER_BROKER_URL"]

    assert stack.start_feeder().wait(20) == 2
    assert "WORKER_BROKER_URL is not set" in stack.log("feeder")


def test_outside_the_window_only_urgent_batches_are_rung_for(archive: Archive, redis_url: str) -> None:
    # Given a batch as usual and an urgent one, and a window that is closed now
    load_small_chunks(archive, 3)
    urgent = load_small_chunks(archive, 2)
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET priority = 1 WHERE id = :b"), {"b": urgent})
    now = datetime.now(UTC)
    closed = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    opened = f"{now - timedelta(hours=2):%H:%M}-{now + timedelta(hours=2):%H:%M}"

    # If it is fed outside and inside
    with Doorbell(redis_url) as doorbell:
        outside = feed_once(archive.engine, doorbell, settings(window=closed))
        waiting = archive.number("SELECT count(*) FROM chunk WHERE rung_at IS NULL")
        inside = feed_once(archive.engine, doorbell, settings(window=opened))

    # Then the usual one waits for the window
    assert (outside, waiting, inside) == (2, 3, 3)


def test_a_training_run_is_rung_for_once_until_its_message_is_taken(archive: Archive, redis_url: str) -> None:
    # Given two queued runs
    first, second = (queue_run(archive.engine, {}, "me") for _ in range(2))

    with Doorbell(redis_url) as doorbell:
        # If the feeder comes by again and again
        for _ in range(3):
            feed_once(archive.engine, doorbell, settings())

        # Then one message waits, about the first
        with redis.Redis.from_url(redis_url) as client:
            assert client.llen("training") == 1
            message = json.loads(client.lpop("training"))
        assert json.loads(base64.b64decode(message["body"]))[0] == [{"version": 1, "run": first}]
        # And while that is worked on none does, and then one about the second
        claim_run(archive.engine, first, worker="w")
        feed_once(archive.engine, doorbell, settings())
        with redis.Redis.from_url(redis_url) as client:
            assert client.llen("training") == 0
            fail_run(archive.engine, first, 1, "over")
            feed_once(archive.engine, doorbell, settings())
            message = json.loads(client.lpop("training"))
        assert json.loads(base64.b64decode(message["body"]))[0] == [{"version": 1, "run": second}]


def test_the_schedule_queues_one_run_where_there_is_something_to_learn(
    archive: Archive, stack: Stack, redis_url: str
) -> None:
    # Given a worker of the training queue, and a schedule that struck twice
    app = Celery(broker=redis_url, set_as_current=False)
    for _ in range(2):
        app.send_task(QUEUE_RETRAINING, queue="training")
    app.close()

    # If there is too little to learn
    stack.start_worker("trainer", queue="training", WORKER_RETRAIN_MIN_LABELS="1")
    stack.until(lambda: stack.log("trainer").count("schedule struck") == 2)

    # Then nothing is queued
    assert list_runs(archive.engine) == []
    assert "task failed" not in stack.log("trainer")
