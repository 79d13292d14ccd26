"""Faults of object storage: a server that dies in the middle costs time, and no image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from sqlalchemy import Engine, Row

    from tests.archive import Archive
    from tests.objects import ObjectServer
    from tests.stack import Stack

#: Eight images wait between server and network at most, so that most of them are not read yet when it dies.
NARROW = {"WORKER_DECODED_IMAGES": "8", "WORKER_BATCH_SIZE": "4"}

#: A port that nothing listens on.
NOBODY = 1


@pytest.fixture
def ledger(sqlite_ledger: Engine) -> Engine:
    """Take SQLite alone: the archive is what fails here."""
    return sqlite_ledger


@pytest.fixture(autouse=True)
def way_there(stack: Stack, object_server: ObjectServer) -> None:
    """Tell every process where the server is, and how to get in."""
    stack.environment.update(object_server.settings)


def outcomes(archive: Archive, batch: int) -> list[Row[tuple[object, ...]]]:
    """List what became of every image, with its verdict."""
    query = text(
        "SELECT path, item.state, reason, image_digest, item.input_digest, malignant_score FROM item"
        " LEFT JOIN result ON result.input_digest = item.input_digest WHERE batch_id = :b ORDER BY path"
    )
    with archive.engine.connect() as connection:
        return list(connection.execute(query, {"b": batch}).all())


def test_o1_a_server_that_dies_in_the_middle_loses_nothing(
    archive: Archive, stack: Stack, object_server: ObjectServer
) -> None:
    # Given an archive on object storage, broken files among it, and a worker in the middle of its only chunk
    archive.activate_model()
    archive.draw(60)
    archive.spoil("z-empty.png", b"")
    archive.spoil("z-page.png", b"<html>")
    object_server.copy(archive.root, "ward")
    gate = Proxy.start(0, object_server.port)
    stack.environment["WORKER_S3_ENDPOINT"] = f"http://127.0.0.1:{gate.port}"
    batch = json.loads(stack.command("submit", "s3://archive/ward").stdout)["batch"]
    stack.start_feeder()
    stack.start_worker(**NARROW, **stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If the server dies
    gate.server = NOBODY
    object_server.kill()
    stack.let_go()
    stack.await_log("w1", '"ending": "archive_away"')

    # Then what was scored is kept, the rest is open, and nothing is rejected for it
    counts = archive.counts(batch)
    assert 0 < counts.done + counts.referred < 60
    assert counts.open == 62 - counts.done - counts.referred
    assert counts.reasons == {}

    # If it is back, with the same objects and one of them gone; it has forgotten them, so nobody may see it fill
    object_server.start()
    object_server.copy(archive.root, "ward")
    object_server.call("delete_object", Bucket="archive", Key="ward/059.png")
    gate.server = object_server.port
    stack.until(lambda: archive.counts(batch).open == 0, 90)

    # Then the batch is finished, and no crash was charged to it
    assert archive.reasons(batch) == {
        "059.png": "missing_image",
        "z-empty.png": "empty_file",
        "z-page.png": "not_an_image",
    }
    assert archive.number("SELECT max(crashes) FROM chunk") == 0
    # And every other image has what it has when it comes from a folder
    (archive.root / "059.png").unlink()
    folder = json.loads(stack.command("submit", archive.root).stdout)["batch"]
    stack.until(lambda: archive.counts(folder).open == 0)
    assert [row for row in outcomes(archive, batch) if row.path != "059.png"] == outcomes(archive, folder)
    gate.stop()


def test_o2_a_server_that_refuses_a_worker_rejects_nothing(
    archive: Archive, stack: Stack, object_server: ObjectServer
) -> None:
    # Given a worker that is sent to a port where nobody is
    archive.activate_model()
    archive.draw(3)
    object_server.copy(archive.root, "ward")
    batch = json.loads(stack.command("submit", "s3://archive/ward").stdout)["batch"]
    stack.start_feeder()
    stack.start_worker("lost", WORKER_S3_ENDPOINT=f"http://127.0.0.1:{NOBODY}")
    stack.await_log("lost", '"ending": "archive_away"')
    assert archive.counts(batch).open == 3

    # If another one comes that knows the way, then it does the work
    stack.start_worker("found")
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).done == 3
