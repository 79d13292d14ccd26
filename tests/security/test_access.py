"""The rights file of Redis: the program works under it, and nobody does anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

import worker.contract
from tests.monitoring import flower_of
from tests.servers import RedisServer

if TYPE_CHECKING:
    from tests.archive import Archive
    from tests.stack import Stack

SHIPPED = Path(worker.contract.__file__).with_name("redis-users.acl")


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis under the shipped rights file, as SECURITY.md says, with an administrator of the test's own."""
    server = RedisServer.prepare()
    rights = SHIPPED.read_text(encoding="utf-8")
    digest = hashlib.sha256(server.password.encode()).hexdigest()
    server.users = rights.replace("PASSWORD_SHA256", digest) + "user admin on >administrator ~* &* +@all\n"
    server.user = "screen"
    try:
        server.start()
        yield server
    finally:
        server.remove()


def connect(server: RedisServer, login: str) -> redis.Redis:
    return redis.Redis.from_url(f"redis://{login}127.0.0.1:{server.port}/0", protocol=2)


def test_worker_feeder_and_flower_work_under_it(archive: Archive, stack: Stack, redis_server: RedisServer) -> None:
    # Given a batch of many chunks
    batch = archive.load(*([row] for row in archive.draw(12)))
    with flower_of(stack) as flower:
        stack.start_feeder()
        stack.start_worker()

        # If it runs to its end
        stack.until(lambda: archive.counts(batch).open == 0)

        # Then Flower has seen worker, queue and tasks, and nobody was refused anything
        stack.until(lambda: any(task["state"] == "SUCCESS" for task in flower.tasks().values()))
        assert b"w1@test" in flower.read("/api/workers?refresh=1")
        assert b"screening" in flower.read("/broker")
    with connect(redis_server, "admin:administrator@") as admin:
        assert [entry for entry in admin.acl_log() if entry["username"] == "screen"] == []


FORBIDDEN = [
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET requirepass",
    "CONFIG SET dir /tmp",
    "ACL LIST",
    "ACL SETUSER evil on nopass ~* +@all",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "SHUTDOWN",
    "MODULE LIST",
    "MONITOR",
    "SAVE",
    "BGREWRITEAOF",
    "REPLICAOF 127.0.0.1 1",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "SLOWLOG GET",
    "SWAPDB 0 1",
    "MIGRATE 127.0.0.1 1 screening 0 1",
    "GET foreign",
    "SET foreign 1",
    "LPUSH foreign 1",
    "DEL foreign",
    "RENAME foreign screening",
    "EVAL return(redis.call('get',KEYS[1])) 1 foreign",
]


@pytest.mark.parametrize("command", FORBIDDEN)
def test_our_user_may_do_nothing_else(redis_server: RedisServer, command: str) -> None:
    # Given somebody else's key in the same server
    with connect(redis_server, "admin:administrator@") as admin:
        admin.set("foreign", "secret")

    with redis_server.client as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split(" "))

    with connect(redis_server, "admin:administrator@") as admin:
        assert admin.get("foreign") == b"secret"


@pytest.mark.parametrize("login", ["", ":anything@", "default:anything@", "screen:wrong@", "screen:@", "root:x@"])
def test_whoever_has_no_password_is_refused(redis_server: RedisServer, login: str) -> None:
    with connect(redis_server, login) as client, pytest.raises(redis.RedisError) as refused:
        client.ping()

    said = str(refused.value).lower()
    assert "authentication required" in said or "wrongpass" in said or "invalid username-password" in said
