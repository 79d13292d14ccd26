"""Whatever is put into Redis, the ledger stays as it is and the worker lives."""

from __future__ import annotations

import base64
import json
import os
import pickle
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from db.tables import Base
from worker.contract import CONTRACT_VERSION, SCREEN_CHUNK, ClaimCheck
from worker.doorbell import Doorbell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.archive import Archive
    from tests.servers import RedisServer
    from tests.stack import Stack

MODEL = "a" * 64


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def envelope(body: bytes, *, task: str = SCREEN_CHUNK, kind: str = "application/json", **headers: Any) -> bytes:
    """Pack a message as Celery's broker does."""
    tag = str(uuid.uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if kind.endswith("json") else "binary",
            "content-type": kind,
            "headers": {"lang": "py", "task": task, "id": tag, "root_id": tag, "argsrepr": "()", **headers},
            "properties": {
                "correlation_id": tag,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "screening"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": tag,
            },
        }
    ).encode()


def call(*arguments: Any, embedded: Any = None) -> bytes:
    """Make the body of a task's message."""
    return json.dumps([arguments, {}, embedded or {}]).encode()


def snapshot(archive: Archive) -> dict[str, list[tuple[Any, ...]]]:
    """Read every row of every table."""
    with archive.engine.connect() as connection:
        return {
            name: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name} ORDER BY 1"))]  # noqa: S608
            for name in Base.metadata.tables
        }


def test_hostile_messages_change_nothing_and_the_worker_lives(
    archive: Archive, stack: Stack, redis_server: RedisServer, tmp_path: Path
) -> None:
    # Given a chunk, and messages of every hostile kind that name it
    batch = archive.load(archive.draw(5))
    (chunk,) = archive.chunks(batch)
    honest = ClaimCheck(version=CONTRACT_VERSION, batch=batch, chunk=chunk, items=5, model=MODEL)
    sound = honest.model_dump()
    ran = tmp_path / "ran"
    signature: dict[str, Any] = {
        "task": "os.mkdir",
        "args": [str(ran)],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
    }
    hostile = [
        # Pickles, said to be so and not
        envelope(pickle.dumps([(Trap(ran),), {}, {}]), kind="application/x-python-serialize"),
        envelope(pickle.dumps([(Trap(ran),), {}, {}])),
        envelope(b"!!python/object/apply:os.mkdir [ran]", kind="application/x-yaml"),
        envelope(call(sound), kind="application/data"),
        # JSON that asks Celery to rebuild a Python object, or to call something before or after
        envelope(call({"__type__": "os.mkdir", "__value__": str(ran)})),
        envelope(call({"bad": 1}, embedded={"chain": [signature], "callbacks": [signature], "errbacks": [signature]})),
        # Tasks that nobody registered, Celery's own among them
        envelope(call(str(ran)), task="os.mkdir"),
        envelope(call([signature], []), task="celery.map"),
        envelope(call(), task="celery.backend_cleanup"),
        # No arguments, too many, the wrong ones, and a body that is none
        envelope(call()),
        envelope(call(sound, sound)),
        envelope(b"[[], {}"),
        envelope(b"\xff\xfe"),
        envelope(call([[[[]]]] * 1000)),
        envelope(call({**sound, "items": 10**400})),
        # Forged ids
        envelope(call({**sound, "chunk": chunk + 1})),
        envelope(call({**sound, "batch": batch + 1})),
        envelope(call({**sound, "model": "b" * 64})),
        envelope(call({**sound, "chunk": f"{chunk} OR 1=1"})),
        envelope(call({**sound, "chunk": -(2**63)})),
        # Headers that are not theirs
        envelope(call({"bad": 1}), retries=10**9, timelimit=[None, -1], eta="not a time"),
        envelope(call({"bad": 1}), group="x", chord={"task": "os.mkdir"}, stamped_headers=["x"]),
    ]
    with redis_server.client as client:
        client.lpush("screening", *hostile)
    before = snapshot(archive)

    # If a worker has taken them all
    worker = stack.start_worker()
    with Doorbell(redis_server.url) as doorbell, redis_server.client as client:
        stack.until(lambda: doorbell.queue_depth() == 0 and client.zcard("unacked_index") == 0)

        # Then not a row has changed, and nothing ran
        assert snapshot(archive) == before
        assert not ran.exists()
        # And the same worker serves an honest message
        doorbell.ring(honest)
        stack.until(lambda: archive.counts(batch).open == 0)
    assert worker.poll() is None
    assert "os.mkdir" not in stack.log("w1")
