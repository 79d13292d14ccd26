"""Batches: how the cores of a CPU are shared among them, and that no worker which trains is held to one core."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from model.batches import keep_batches_apart, share_cores, side_by_side

_WORKER = """
import os, sys
from worker.app import app
from worker import lifecycle
from worker.child import Child
Child.open = lambda *_: print(os.environ.get("TF_NUM_INTRAOP_THREADS", "all"))
app.Worker(hostname="one@here", queues=sys.argv[1].split(",") if sys.argv[1] else None)
lifecycle.current_child()
"""


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, (1, 1)), (2, (2, 1)), (4, (4, 1)), (6, (4, 2)), (8, (4, 2)), (64, (4, 16))]
)
def test_a_core_works_on_a_batch_of_its_own_as_far_as_the_memory_allows(
    cores: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))

    assert share_cores() == expected


def test_what_the_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")

    keep_batches_apart()

    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "7"


def test_batches_are_scored_at_once_and_answered_in_order() -> None:
    # Given two threads that wait for each other within a batch, so that one alone would never end
    meeting = threading.Barrier(2, timeout=30)
    scorer = SimpleNamespace(batch_size=3, batches_at_once=2)

    def score(some: slice) -> list[int]:
        meeting.wait()
        return list(range(12))[some]

    assert side_by_side(scorer, 12, score) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(
    ("queues", "apart"),
    [("screening,rendering", True), ("training", False), ("screening,training", False), ("", False)],
)
def test_a_worker_that_trains_gives_a_step_all_cores(queues: str, apart: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TF_NUM", "WORKER_", "DB_"))}

    told = subprocess.run(
        [sys.executable, "-c", _WORKER, queues],
        env=environment | {"WORKER_BROKER_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert told.stdout.split()[-1] == (str(share_cores()[1]) if apart else "all")
