"""Real Celery workers, a real Redis and a real ledger; only the network is a light one."""

from __future__ import annotations

import os
import pickle
import signal
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from worker.contract import CONTRACT_VERSION, SCREEN_CHUNK, ClaimCheck
from worker.doorbell import Doorbell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.archive import Archive
    from tests.servers import RedisServer
    from tests.stack import Stack

MODEL = "a" * 64


def check(batch: int, chunk: int, items: int = 1) -> ClaimCheck:
    return ClaimCheck(version=CONTRACT_VERSION, batch=batch, chunk=chunk, items=items, model=MODEL)


def ring(url: str, batch: int, *chunks: int) -> None:
    with Doorbell(url) as doorbell:
        for chunk in chunks:
            doorbell.ring(check(batch, chunk))


def test_a_rung_chunk_is_screened_and_a_bad_image_leaves_the_others_alone(
    archive: Archive, stack: Stack, redis_url: str
) -> None:
    # Given a chunk with good images, an empty file, a text and a missing file
    rows = archive.draw(30)
    bad = [archive.spoil("empty.png", b""), archive.spoil("text.jpg", b"<html>no image</html>")]
    gone = archive.spoil("gone.png", b"x")
    (archive.root / "gone.png").unlink()
    batch = archive.load([*rows, *bad, gone])

    # If it is rung and a worker listens
    ring(redis_url, batch, *archive.chunks(batch))
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then the good ones are done and each bad one is rejected for its reason
    counts = archive.counts(batch)
    assert (counts.done, counts.referred, counts.rejected) == (30, 0, 3)
    assert counts.reasons == {"empty_file": 1, "not_an_image": 1, "missing_image": 1}
    # And the message is gone from Redis
    with Doorbell(redis_url) as doorbell:
        assert doorbell.queue_depth() == 0


def test_feeder_and_two_workers_finish_a_batch_of_many_chunks(archive: Archive, stack: Stack) -> None:
    # Given ten chunks that nobody rang
    rows = archive.draw(200)
    batch = archive.load(*(rows[start : start + 20] for start in range(0, 200, 20)))

    # If a feeder and two workers run
    stack.start_feeder()
    stack.start_worker("w1")
    stack.start_worker("w2")
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then every image has its one result
    counts = archive.counts(batch)
    assert (counts.found, counts.done) == (200, 200)
    assert archive.number("SELECT count(*) FROM result") == 200


@pytest.mark.parametrize("step", ["after_claim", "after_predict", "after_commit"])
def test_a_chunk_whose_worker_was_killed_at_a_named_step_runs_again(
    archive: Archive, stack: Stack, tmp_path: Path, step: str
) -> None:
    # Given a worker that is killed once at this step
    batch = archive.load(archive.draw(40))
    struck = tmp_path / "struck"
    stack.start_feeder()
    stack.start_worker(WORKER_FAILPOINT=step, WORKER_FAILPOINT_FILE=str(struck))

    # If its pool child comes back
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then it was killed indeed, nothing is lost and nothing is there twice
    assert struck.exists()
    assert archive.counts(batch).done == 40
    assert archive.number("SELECT count(*) FROM result") == 40


def test_a_killed_workers_chunk_is_taken_over_by_another(archive: Archive, stack: Stack) -> None:
    # Given a slow worker in the middle of a chunk
    batch = archive.load(archive.draw(64))
    stack.start_feeder()
    victim = stack.start_worker("victim", LIGHT_SECONDS="0.5", WORKER_RECORD_SECONDS="0.1")
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If it is killed with all its children and another one listens
    os.killpg(victim.pid, signal.SIGKILL)
    stack.start_worker("heir")
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then all is done, once
    assert archive.counts(batch).done == 64
    assert archive.number("SELECT count(*) FROM result") == 64
    assert archive.number("SELECT max(crashes) FROM chunk") == 1


def test_an_image_that_kills_three_workers_is_quarantined_and_the_others_are_done(
    archive: Archive, stack: Stack
) -> None:
    # Given a chunk with one image that kills whoever opens it
    batch = archive.load(archive.draw(12))
    stack.start_feeder()
    stack.start_worker(LIGHT_DEADLY="7", WORKER_LEASE_SECONDS="1.5", WORKER_QUIET_SECONDS="0.5")

    # If the worker goes on
    stack.until(lambda: archive.counts(batch).open == 0, 60)

    # Then that image alone is quarantined
    counts = archive.counts(batch)
    assert (counts.done, counts.quarantined) == (11, 1)
    assert archive.states(batch)["007.png"] == "quarantined"


@pytest.mark.parametrize("remapped", [False, True])
def test_a_worker_told_to_stop_gives_its_chunk_back(archive: Archive, stack: Stack, *, remapped: bool) -> None:
    # Given a worker in the middle of a long chunk
    batch = archive.load(archive.draw(200))
    remap = {"REMAP_SIGTERM": "SIGQUIT"} if remapped else {}
    feeder = stack.start_feeder()
    worker = stack.start_worker(LIGHT_SECONDS="0.3", WORKER_RECORD_SECONDS="0.1", WORKER_SHUTDOWN_SECONDS="2", **remap)
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)
    feeder.terminate()

    # If it gets SIGTERM
    worker.terminate()
    stack.until(lambda: archive.number("SELECT count(*) FROM chunk WHERE state = 'open'") == 1, 5)

    # Then it ends, what it did is recorded, the rest is open, and no crash is charged
    worker.wait(10)
    counts = archive.counts(batch)
    assert counts.done + counts.open == 200
    assert counts.done >= 16
    assert archive.number("SELECT crashes FROM chunk") == 0


def publish(url: str, payload: Any, *, name: str = SCREEN_CHUNK, serializer: str = "json") -> None:
    app = Celery(broker=url, set_as_current=False)
    app.conf.update(accept_content=["json", "pickle"], task_ignore_result=True)
    app.send_task(name, args=(payload,), queue="screening", serializer=serializer)
    app.close()


def test_forged_messages_change_nothing_and_the_next_honest_one_is_served(
    archive: Archive, stack: Stack, redis_url: str
) -> None:
    # Given a chunk, and messages that are malformed, forged, newer or for nobody
    batch = archive.load(archive.draw(5))
    (chunk,) = archive.chunks(batch)
    honest = check(batch, chunk).model_dump()
    forged: list[Any] = [
        None,
        "DROP TABLE chunk",
        {},
        honest | {"batch": batch + 1},
        honest | {"chunk": 2**63},
        honest | {"chunk": chunk + 1000},
        honest | {"model": "b" * 64},
        honest | {"chunk": str(chunk)},
        honest | {"path": "../../etc/passwd"},
        honest | {"version": CONTRACT_VERSION + 1, "shape": "new"},
    ]
    for payload in forged:
        publish(redis_url, payload)
    publish(redis_url, honest, name="os.system")

    # If a worker has read them all
    stack.start_worker()
    with Doorbell(redis_url) as doorbell:
        stack.until(lambda: doorbell.queue_depth() == 0)
        stack.until(lambda: stack.log("w1").count("message refused") == 9)

        # Then the chunk was never touched
        assert archive.number("SELECT attempt FROM chunk") == 0
        # And an honest message is served
        doorbell.ring(check(batch, chunk))
    stack.until(lambda: archive.counts(batch).open == 0)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_pickle_is_refused_unread(archive: Archive, stack: Stack, redis_url: str, tmp_path: Path) -> None:
    # Given a message whose pickle would run code
    assert pickle.dumps(Bomb("x"))
    batch = archive.load(archive.draw(5))
    trace = tmp_path / f"ran-{uuid.uuid4().hex}"
    publish(redis_url, Bomb(str(trace)), serializer="pickle")
    ring(redis_url, batch, *archive.chunks(batch))

    # If a worker meets it
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then nothing ran
    assert not trace.exists()


def test_nothing_about_a_patient_is_found_outside_the_ledger(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a name in a file name, good and bad, and an archive of that name
    archive.root = archive.root.with_name("Canaria-folder")
    rows = archive.draw(3)
    batch = archive.load([*rows, archive.spoil("Canaria.png", b"broken Canaria"), archive.spoil("Canaria.jpg", b"")])
    away = archive.load([archive.spoil("Canaria-away.png", b"x")], model="c" * 64)

    # If it is screened
    stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0 and archive.counts(away).open == 0)

    # Then neither logs nor Redis know the name
    assert "Canaria" not in stack.log("w1") + stack.log("feeder")
    redis_server.kill()
    files = [path for path in redis_server.folder.rglob("*") if path.is_file()]
    assert files
    assert all(b"Canaria" not in path.read_bytes() for path in files)
    # And each chunk left a line with its counts
    assert '"ending": "finished"' in stack.log("w1")


def test_a_chunk_in_hand_goes_on_while_redis_is_restarted(
    archive: Archive, stack: Stack, redis_server: RedisServer
) -> None:
    # Given a worker in the middle of its first chunk of two
    rows = archive.draw(96)
    batch = archive.load(rows[:48], rows[48:])
    stack.start_feeder()
    stack.start_worker(LIGHT_SECONDS="0.3", WORKER_RECORD_SECONDS="0.1")
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If Redis is killed and started again
    redis_server.kill()
    redis_server.start()

    # Then both are finished by the same worker
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 96
