"""One machine and no server: an archive in, rows and files out, through the real parts."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from model.images import encode_image
from model.labels import CLASSES
from model.synthetic import draw_lesion
from tests.stack import LIGHT

if TYPE_CHECKING:
    from tests.acceptance.conftest import Screen

BROKEN = {"empty_file": 1, "truncated": 1, "not_an_image": 1, "unsupported_format": 1, "missing_image": 1}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_an_archive_is_screened_again_for_nothing_and_grown_for_the_new_files_only(
    screen: Screen, archive: Path, tmp_path: Path
) -> None:
    # Given an archive with broken files that was screened
    out = tmp_path / "out"
    first = screen.report("run", archive, "--out", out, code=1)
    assert (first["found"], first["rejected"], first["open"]) == (45, 5, 0)
    assert screen.sound(first["batch"])
    screen("verify", first["batch"], "--rehash")

    # Then every image has a result whose probabilities sum to 1, and every broken one its reason
    rows = rows_of(out / "results.csv")
    assert len(rows) == 45
    reasons: dict[str, int] = {}
    for row in rows:
        if row["state"] == "rejected":
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
        else:
            assert sum(float(row[f"p_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
            assert row["model"] == first["model"]
    assert reasons == BROKEN
    summary = json.loads((out / "summary.json").read_text())
    assert {key: summary[key] for key in first} == first
    assert "not a medical device" in json.dumps(summary).lower()
    scored = screen.results()

    # If it is screened again, nothing happens and the command says so
    again = screen("run", archive, code=1)
    assert "nothing to do" in (again.stdout + again.stderr).lower()
    assert screen.results() == scored

    # If it grows by three files, only those are scored
    generator = np.random.default_rng(9)
    for number in range(3):
        (archive / f"new_{number}.jpg").write_bytes(encode_image(draw_lesion(generator)))
    grown = screen.report("run", archive, code=1)
    assert (grown["found"], grown["rejected"]) == (48, 5)
    assert grown["batch"] != first["batch"]
    assert screen.results() == scored + 3
    assert screen.sound(grown["batch"])


def stack_of(home: Path) -> list[str]:
    """Command lines of the processes that live on a home; Redis overwrites its environment, not its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("LESION_SCREEN_HOME") == str(home)
            if ours or Path(process.cwd()).is_relative_to(home):
                found.append(" ".join(process.cmdline()))
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_however_a_screening_ends(screen: Screen, archive: Path, end: signal.Signals) -> None:
    # Given a screening with its private stack; which network scores has no part in how it ends
    screen.environment.update(WORKER_CLASSIFIER="light_classifier:LightClassifier", PYTHONPATH=str(LIGHT))
    screen.environment["WORKER_ENGINE"] = "auto"
    process = subprocess.Popen(
        screen.command("run", archive), env=screen.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: any("celery" in line for line in stack_of(screen.home)))

    # If it is interrupted, ended or killed
    process.send_signal(end)
    process.wait(timeout=60)

    # Then its Redis, feeder and workers go too, and the batch can be finished later
    wait_until(lambda: not stack_of(screen.home))
    assert screen.report("run", archive, code=1)["open"] == 0
