"""Faults of a PACS and of whoever pulls from it: they cost time, no image, and nobody but the study that hangs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from tests.faults.proxy import Proxy
from tests.orthanc import skin_object
from tests.stack import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.archive import Archive
    from tests.orthanc import Orthanc
    from tests.stack import Stack

#: Eight images wait between server and network at most, so that most of them are not read yet when it dies.
NARROW = {"WORKER_DECODED_IMAGES": "8", "WORKER_BATCH_SIZE": "4"}
#: What hangs is found out soon.
HASTY = {"WORKER_DICOMWEB_SECONDS": "0.5"}

#: A port that nothing listens on.
NOBODY = 1

_RETRIEVED = re.compile(rb"GET \S+/instances/([0-9.]+) HTTP")


@dataclass(slots=True, kw_only=True)
class Gate:
    """The way to the PACS: counts what is fetched, and lets whatever is about one study hang."""

    proxy: Proxy
    #: What is in the requests that hang.
    wedged: bytes = b""
    #: Set: what hangs goes on.
    mended: threading.Event = field(default_factory=threading.Event)
    #: Requests that hang or have hung.
    hung: int = 0
    #: How often each instance was fetched.
    fetched: Counter[str] = field(default_factory=Counter)

    def look(self, data: bytes) -> bool:
        """Look at what is asked for; cuts nothing."""
        if self.wedged and self.wedged in data and not self.mended.is_set():
            self.hung += 1
            self.mended.wait(60)
        self.fetched.update(name.decode() for name in _RETRIEVED.findall(data))
        return False


@pytest.fixture
def ledger(sqlite_ledger: Engine) -> Engine:
    """Take SQLite alone: the archive is what fails here."""
    return sqlite_ledger


@pytest.fixture
def gate(stack: Stack, orthanc: Orthanc) -> Iterator[Gate]:
    """Put a proxy before the PACS, and tell every process of it."""
    made = Gate(proxy=Proxy.start(0, orthanc.port))
    made.proxy.cuts = made.look
    stack.environment.update(orthanc.settings_through(made.proxy.port))
    yield made
    made.mended.set()
    made.proxy.stop()


def fill(orthanc: Orthanc, studies: int, instances: int = 2) -> list[bytes]:
    """Store studies, each image of another brightness."""
    keys = [(study, instance) for study in range(1, studies + 1) for instance in range(instances)]
    stored = [skin_object(s, 0, i, brightness=(s * instances + i) * 2 % 230) for s, i in keys]
    orthanc.store(stored)
    return stored


def submit(stack: Stack, orthanc: Orthanc, gate: Gate, **settings: Any) -> int:
    """Submit all photographs of the PACS by way of the proxy; returns the batch."""
    said = stack.command("submit", orthanc.address("Modality=XC", gate.proxy.port), **settings)
    return int(json.loads(said.stdout)["batch"])


def outcomes(archive: Archive, batch: int) -> dict[str, tuple[object, ...]]:
    """Say what became of each image, with its verdict, by its bytes."""
    query = text(
        "SELECT image_digest, item.state, reason, item.input_digest, age, sex, localization, malignant_score FROM item"
        " LEFT JOIN result ON result.input_digest = item.input_digest WHERE batch_id = :b"
    )
    with archive.engine.connect() as connection:
        return {row[0]: tuple(row[1:]) for row in connection.execute(query, {"b": batch})}


def test_p1_a_pacs_that_dies_in_the_middle_loses_nothing(
    archive: Archive, stack: Stack, orthanc: Orthanc, gate: Gate
) -> None:
    # Given a pull of thirty studies, and a worker in the middle of its only chunk
    archive.activate_model()
    stored = fill(orthanc, 30)
    batch = submit(stack, orthanc, gate)
    stack.start_feeder()
    stack.start_worker(**NARROW, **stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If the PACS dies
    orthanc.kill()
    stack.let_go()
    stack.await_log("w1", '"ending": "archive_away"')

    # Then what was scored is kept, the rest is open, and nothing is rejected for it
    counts = archive.counts(batch)
    assert 0 < counts.done + counts.referred < 60
    assert counts.open == 60 - counts.done - counts.referred
    assert counts.reasons == {}
    with archive.engine.connect() as connection:
        scored = connection.execute(text("SELECT instance_uid FROM item WHERE state <> 'open'")).scalars().all()

    # If it is back, with one image less
    orthanc.start()
    orthanc.delete(orthanc.store([stored[-1]])[0])
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then the batch is finished, no crash was charged to it, and what was scored before was not fetched again
    assert archive.counts(batch).reasons == {"missing_image": 1}
    assert archive.number("SELECT max(crashes) FROM chunk") == 0
    assert archive.number("SELECT count(*) FROM result") == 59
    assert {gate.fetched[uid] for uid in scored} == {1}

    # And every other image has what it has when it comes from a folder
    archive.root.mkdir()
    for number, data in enumerate(stored[:-1]):
        (archive.root / f"{number:03d}.dcm").write_bytes(data)
    folder = json.loads(stack.command("submit", archive.root).stdout)["batch"]
    stack.until(lambda: archive.counts(folder).open == 0)
    by_pacs = outcomes(archive, batch)
    del by_pacs[None]  # type: ignore[arg-type]
    assert by_pacs == outcomes(archive, folder)


def test_p2_a_study_that_hangs_holds_nobody_up_and_may_be_asked_for_again(
    archive: Archive, stack: Stack, orthanc: Orthanc, gate: Gate
) -> None:
    # Given a pull, and a study of it that hangs from then on
    archive.activate_model()
    fill(orthanc, 12, 4)
    batch = submit(stack, orthanc, gate)
    gate.wedged = b"/studies/2.25.7/"
    stack.start_feeder()
    stack.start_worker(**HASTY)

    # Then its images alone are rejected, most of them without a request, and no worker was lost for it
    stack.until(lambda: archive.counts(batch).open == 0)
    counts = archive.counts(batch)
    assert (counts.done + counts.referred, counts.reasons) == (44, {"not_delivered": 4})
    assert archive.number("SELECT count(DISTINCT study_uid) FROM item WHERE reason IS NOT NULL") == 1
    assert archive.number("SELECT max(crashes) FROM chunk") == 0
    assert gate.hung <= 6

    # If it is mended and they are asked for again, then they are there
    gate.mended.set()
    stack.command("retry", batch, "--reason", "not_delivered")
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).reasons == {}
    assert set(gate.fetched.values()) <= {1, 2, 3}


def test_p3_a_study_that_cannot_be_listed_is_counted_and_comes_with_the_next_pull(
    archive: Archive, stack: Stack, orthanc: Orthanc, gate: Gate
) -> None:
    # Given a study that hangs while it is listed
    archive.activate_model()
    fill(orthanc, 12)
    gate.wedged = b"/studies/2.25.7/series"
    batch = submit(stack, orthanc, gate, **HASTY)

    # Then it is one rejected item, and the others are screened
    stack.start_feeder()
    stack.start_worker()
    stack.until(lambda: archive.counts(batch).open == 0)
    counts = archive.counts(batch)
    assert (counts.done + counts.referred, counts.reasons) == (22, {"study_not_listed": 1})
    assert archive.number("SELECT count(*) FROM item WHERE study_uid = '2.25.7' AND path IS NULL") == 1

    # If the same is pulled again with the study mended and a new one there, nothing else is fetched again
    gate.mended.set()
    orthanc.store([skin_object(99)])
    again = submit(stack, orthanc, gate)
    assert again != batch
    stack.until(lambda: archive.counts(again).open == 0)
    counts = archive.counts(again)
    assert (counts.done + counts.referred, counts.reasons) == (25, {})
    assert len(gate.fetched) == 25
    assert set(gate.fetched.values()) == {1}
    # And a third time it is the batch that is there
    assert submit(stack, orthanc, gate) == again


def test_p4_a_producer_that_is_killed_while_it_lists_leaves_nothing_and_is_started_again(
    archive: Archive, stack: Stack, orthanc: Orthanc, gate: Gate
) -> None:
    # Given a producer in the middle of its list
    archive.activate_model()
    fill(orthanc, 12)
    gate.wedged = b"/studies/2.25.7/series"
    command = [sys.executable, "-c", "from producer.cli import main; main()", "submit"]
    producer = subprocess.Popen(
        [*command, orthanc.address("Modality=XC", gate.proxy.port)], env=stack.environment, cwd=ROOT
    )
    stack.until(lambda: gate.hung)

    # If it is killed
    os.kill(producer.pid, signal.SIGKILL)
    producer.wait()

    # Then the ledger knows nothing of it, and the same command does it all
    assert archive.number("SELECT count(*) FROM batch") == 0
    gate.mended.set()
    batch = submit(stack, orthanc, gate)
    assert archive.counts(batch).open == 24
    assert not gate.fetched


def test_p5_a_worker_that_is_killed_fetches_again_only_what_was_not_recorded(
    archive: Archive, stack: Stack, orthanc: Orthanc, gate: Gate
) -> None:
    # Given a worker in the middle of a pull
    archive.activate_model()
    fill(orthanc, 30)
    batch = submit(stack, orthanc, gate)
    stack.start_feeder()
    victim = stack.start_worker("victim", **NARROW, **stack.hold())
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If it is killed, and another one comes
    os.killpg(victim.pid, signal.SIGKILL)
    with archive.engine.connect() as connection:
        scored = connection.execute(text("SELECT instance_uid FROM item WHERE state <> 'open'")).scalars().all()
    stack.let_go()
    stack.start_worker("heir")
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then all is done, once, and what was recorded was fetched once
    counts = archive.counts(batch)
    assert counts.done + counts.referred == 60
    assert archive.number("SELECT count(*) FROM result") == 60
    assert scored
    assert {gate.fetched[uid] for uid in scored} == {1}


def test_p6_a_worker_that_is_refused_or_finds_nobody_rejects_nothing(
    archive: Archive, stack: Stack, orthanc: Orthanc, gate: Gate
) -> None:
    # Given workers with another password, and one that finds nobody
    archive.activate_model()
    fill(orthanc, 2)
    batch = submit(stack, orthanc, gate)
    stack.start_feeder()
    refused = stack.start_worker("refused", WORKER_DICOMWEB_PASSWORD="another")
    stack.await_log("refused", '"ending": "archive_away"')
    refused.kill()
    gate.proxy.server = NOBODY
    stack.start_worker("lost", **HASTY)
    stack.await_log("lost", '"ending": "archive_away"')
    assert archive.counts(batch).open == 4

    # If the way is free, then the work is done
    gate.proxy.server = orthanc.port
    stack.until(lambda: archive.counts(batch).open == 0)
    assert archive.counts(batch).reasons == {}
