"""Real Celery workers, a real Redis and a real ledger; only the network is a light one."""

from __future__ import annotations

import os
import pickle
import uuid
from typing import TYPE_CHECKING, Any

from celery import Celery

from worker.contract import CONTRACT_VERSION, SCREEN_CHUNK, ClaimCheck
from worker.doorbell import Doorbell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.archive import Archive
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


def test_a_worker_that_finds_gpus_and_uses_none_says_so_aloud(archive: Archive, stack: Stack, tmp_path: Path) -> None:
    # Given a machine whose driver tells of two GPUs, and a classifier that computes on the CPU
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\n'\n", encoding="utf-8")
    driver.chmod(0o755)
    stack.start_worker("w1", PATH=f"{tmp_path}:{os.environ['PATH']}", WORKER_GPU_INDEX="1")
    stack.start_feeder()

    # If it screens a chunk
    batch = archive.load(archive.draw(2))
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then it says so where an administrator looks
    assert "This machine has 2 GPU(s) and TensorFlow uses none of them" in stack.log("w1")
    assert '"event": "this machine has GPUs and TensorFlow uses none"' in stack.log("w1")
