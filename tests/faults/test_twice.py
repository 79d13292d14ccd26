"""Everything done twice, or by two at once (table F)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.archive import Archive
    from tests.stack import Stack


@pytest.fixture
def command(archive: Archive, stack: Stack) -> Callable[..., str]:
    """Give what runs a command in a process of its own on the test's ledger, in which a model is active."""
    archive.activate_model()
    return lambda *arguments: stack.command(*arguments).stdout


def test_f_two_producers_and_two_workers_at_once_screen_an_archive_once(
    archive: Archive, stack: Stack, command: Callable[..., str]
) -> None:
    # Given two workers and an archive with a copy in it
    archive.draw(40)
    (archive.root / "copy.png").write_bytes((archive.root / "007.png").read_bytes())
    stack.start_feeder()
    for name in ("w1", "w2"):
        stack.start_worker(name, LIGHT_SECONDS="0.05")

    # If it is submitted by two at once, and once more
    with ThreadPoolExecutor(2) as pool:
        said = [json.loads(one) for one in pool.map(lambda _: command("submit", archive.root), range(2))]
    stack.until(lambda: archive.counts(said[0]["batch"]).open == 0)
    said.append(json.loads(command("submit", archive.root)))

    # Then there is one batch, each file is in it once, and the copy shares its result
    (batch,) = {one["batch"] for one in said}
    assert archive.number("SELECT count(*) FROM batch") == 1
    assert archive.counts(batch).done == 41
    assert archive.number("SELECT count(*) FROM result") == 40


def test_f_one_image_in_two_batches_has_one_result(archive: Archive, stack: Stack, command: Callable[..., str]) -> None:
    # Given a batch that was screened
    archive.draw(12)
    stack.start_feeder()
    stack.start_worker()
    first = json.loads(command("submit", archive.root))["batch"]
    stack.until(lambda: archive.counts(first).open == 0)

    # If the archive grows and is submitted again
    archive.draw(3, first=100)
    second = json.loads(command("submit", archive.root))["batch"]
    stack.until(lambda: archive.counts(second).open == 0)

    # Then only what is new was scored
    assert second != first
    assert archive.counts(second).done == 15
    assert archive.number("SELECT count(*) FROM result") == 15


def test_f_reports_and_a_cancel_during_a_run_see_sums_that_add_up(
    archive: Archive, stack: Stack, command: Callable[..., str]
) -> None:
    # Given a worker in the middle of an archive
    archive.draw(120)
    batch = json.loads(command("submit", archive.root))["batch"]
    stack.start_feeder()
    stack.start_worker(LIGHT_SECONDS="0.2", WORKER_RECORD_SECONDS="0.1")
    stack.until(lambda: archive.number("SELECT count(*) FROM result") > 0)

    # If it is looked at, verified and exported meanwhile, and then cancelled
    for _ in range(2):
        seen = json.loads(command("status", batch, "--json"))
        outcomes = ("open", "done", "referred", "rejected", "quarantined")
        assert sum(seen[name] for name in outcomes) == seen["found"] == 120
        command("verify", batch)
    out = archive.root.parent / "out.csv"
    command("export", batch, "--out", out)
    command("cancel", batch)
    done = archive.counts(batch).done
    results = archive.number("SELECT count(*) FROM result")

    # Then every row was there once, and what was recorded stays as it was at the cancel
    assert len(out.read_text().splitlines()) == 121
    command("verify", batch)
    assert archive.counts(batch).done == done == results
