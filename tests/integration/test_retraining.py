"""A training run through a real training worker: killed, taken over, judged, promoted or not."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, get_args

import pytest
from sqlalchemy import text

from db.models import active_model, get_model, list_models
from db.run_log import list_events
from db.runs import get_run, list_runs
from db.settings import read_settings
from db.tables import ModelState, RunState
from model.artifact import artifact_path, read_manifest
from model.card import read_card
from model.classifier import Classifier
from tests.conftest import Scene
from tests.labelled import draw_labelled
from tests.servers import await_that
from tests.stack import ROOT, SHORT_TIMES, Stack
from worker.failpoints import Step
from worker.retraining import run_folder
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

#: Between training and promotion, in their order.
STAGES = tuple(step for step in get_args(Step) if step not in {"after_claim", "after_predict", "after_commit"})
SMALL = ("--backbone", "MobileNet", "--input-size", "32", "--weights", "none")
#: No network of a minute's training passes the gate; what is tested here is what follows from its yes.
ATTEMPT = (
    "from model.gate import GateDecision\n"
    "from worker import retraining\n"
    "from worker.child import Child\n"
    "yes = GateDecision(verdict='promote', reasons=(), images=1, lesions=1, malignant_lesions=1, draws=1, seed=0)\n"
    "retraining.judge_candidate = lambda *_: yes\n"
    "print(retraining.answer_run({'version': 1, 'run': 1}, Child.open('w', lambda: False)))\n"
)


@pytest.fixture
def stack(sqlite_ledger: Engine, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """Give what starts workers on a ledger with the shipped model, and a data folder beside it."""
    url = sqlite_ledger.url.render_as_string(hide_password=False)
    given = Stack.prepare(tmp_path / "logs", ledger_url=url, redis_url=redis_url, settings=SHORT_TIMES)
    assert given.register_model().returncode == 0
    draw_labelled(tmp_path / "data")
    try:
        yield given
    finally:
        given.stop()


def store(tmp_path: Path) -> Path:
    """Where the stack keeps models and runs."""
    return tmp_path / "home" / "store"


def kinds(ledger: Engine, run: int) -> list[str]:
    """List what happened in a run."""
    return [event.kind for event in list_events(ledger, run)]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_epoch_and_ends_with_a_candidate_that_the_gate_has_judged(
    sqlite_ledger: Engine, stack: Stack, tmp_path: Path
) -> None:
    # Given a run that a training worker works on
    before = active_model(sqlite_ledger)
    assert before is not None
    queued = stack.command("train", "--data", tmp_path / "data", *SMALL, "--stages", "2x32", "--promote", "never")
    run = json.loads(queued.stdout)["run"]
    stack.start_feeder()
    stack.start_worker("trainer", queue="training")
    stack.until(lambda: "epoch" in kinds(sqlite_ledger, run), 120)

    # If its process is killed after the first epoch
    (claimed,) = (event.data for event in list_events(sqlite_ledger, run) if event.kind == "claimed")
    os.kill(int(str(claimed["worker"]).rpartition("/")[2]), signal.SIGKILL)
    stack.until(lambda: get_run(sqlite_ledger, run).state is RunState.DONE, 180)

    # Then another one has gone on with the second
    epochs = [event.data["epoch"] for event in list_events(sqlite_ledger, run) if event.kind == "epoch"]
    assert epochs == [1, 2]
    assert kinds(sqlite_ledger, run) == [
        *("queued", "claimed", "data", "epoch"),
        *("claimed", "data", "epoch", "model", "gate", "done"),
    ]
    # And there is a candidate with its card, which loads, and the active model is what it was
    ended = get_run(sqlite_ledger, run)
    assert ended.model_digest is not None
    assert get_model(sqlite_ledger, ended.model_digest).state is ModelState.CANDIDATE
    assert active_model(sqlite_ledger) == before
    folder = artifact_path(store(tmp_path), ended.model_digest)
    assert Classifier.load(folder).digest == ended.model_digest
    assert ended.gate is not None
    assert (ended.gate["active"], ended.gate["uses"]) == (before.digest, 1)
    card = read_card(folder)
    assert f"Compared with the active model `{before.digest}`" in card
    assert card == (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    # And there are plots in its folder
    plots = {path.name for path in (run_folder(store(tmp_path), ended) / "plots").iterdir()}
    assert plots == {"curves.png", "confusion.png", "roc.png", "reliability.png"}
    # And a person sees it
    log = stack.command("runs", "log", run).stdout
    assert "attempt 2, after 1 lost in a row" in log
    assert f"learns from {7 * 24} images" in log
    shown = json.loads(stack.command("models", "show", ended.model_digest[:8]).stdout)
    assert shown["gate"] == ended.gate
    assert "candidate" in stack.command("models", "list").stdout
    assert stack.command("runs", "list").stdout.count("done") == 1
    # And in its evaluation, whose curves the ledger holds
    stack.command("report", "--model", ended.model_digest, "--out", tmp_path / "report")
    page = (tmp_path / "report" / "evaluation.html").read_text(encoding="utf-8")
    assert "<polyline" in page
    assert "Verdict: <strong>" in page
    assert "Not stored for this model" not in page


@pytest.mark.slow
def test_a_death_at_the_first_and_the_last_step_of_saving_leaves_the_old_model_active_until_then(
    sqlite_ledger: Engine, stack: Stack, tmp_path: Path
) -> None:
    # Given a queued run whose model is to be promoted where the gate says so
    before = active_model(sqlite_ledger)
    assert before is not None
    stack.command("train", "--data", tmp_path / "data", *SMALL, "--stages", "1x32", "--promote", "gate")

    def attempt(**settings: str) -> subprocess.CompletedProcess[str]:
        with sqlite_ledger.begin() as connection:
            connection.execute(text("UPDATE training_run SET heartbeat = heartbeat - 3600, crashes = 0"))
        return subprocess.run(
            [sys.executable, "-c", ATTEMPT],
            env=stack.environment | {"WORKER_GATE_DATA": str(tmp_path / "data")} | settings,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    # The steps in between are `test_saving`'s, where no network has to be trained to get there.
    for step in (STAGES[0], STAGES[-1]):
        # If its worker dies at one step after the other
        died = attempt(WORKER_FAILPOINT=step, WORKER_FAILPOINT_FILE=str(tmp_path / step))
        assert died.returncode == -signal.SIGKILL, died.stderr
        # Then the old model is the active one, and every registered one is whole in the store
        if step != STAGES[-1]:
            assert active_model(sqlite_ledger) == before
        for model in list_models(sqlite_ledger):
            folder = artifact_path(store(tmp_path), model.digest)
            manifest = read_manifest(folder)
            assert manifest.digest == model.digest
            assert manifest.weights_sha256 == hashlib.sha256((folder / "weights.h5").read_bytes()).hexdigest()
    # And with the last the new one is, with nothing trained or registered twice
    ended = get_run(sqlite_ledger, 1)
    assert ended.state is RunState.DONE
    assert ended.gate is not None
    active = active_model(sqlite_ledger)
    assert active is not None
    assert active.digest == ended.model_digest
    assert len(list_models(sqlite_ledger)) == 2
    assert kinds(sqlite_ledger, 1).count("epoch") == 1
    assert "None" in attempt().stdout


@pytest.mark.slow
def test_a_cancelled_run_is_let_go_and_a_worker_told_to_stop_gives_its_run_back(
    sqlite_ledger: Engine, stack: Stack, tmp_path: Path
) -> None:
    # Given a run of many epochs that a worker works on
    run = json.loads(stack.command("train", "--data", tmp_path / "data", *SMALL, "--stages", "900x32").stdout)["run"]
    stack.start_feeder()
    worker = stack.start_worker("first", queue="training", REMAP_SIGTERM="SIGQUIT")
    stack.until(lambda: "epoch" in kinds(sqlite_ledger, run), 120)

    # If that is told to stop
    worker.terminate()
    worker.wait(60)

    # Then the run waits, and no worker counts as lost
    assert get_run(sqlite_ledger, run).state is RunState.QUEUED
    assert kinds(sqlite_ledger, run)[-1] == "released"
    # And if it is cancelled while the next one works on it
    stack.start_worker("second", queue="training")
    stack.until(lambda: kinds(sqlite_ledger, run).count("claimed") == 2, 60)
    stack.command("runs", "cancel", run)

    # Then that one lets go of it and takes the next, which cannot be done and says why
    nothing = json.loads(stack.command("train", "--data", tmp_path, *SMALL).stdout)["run"]
    stack.until(lambda: get_run(sqlite_ledger, nothing).state is RunState.FAILED, 60)
    assert "No HAM10000_metadata.csv" in stack.command("runs", "log", nothing).stdout
    assert get_run(sqlite_ledger, run).state is RunState.CANCELLED
    assert "task failed" not in stack.log("first") + stack.log("second")


def test_two_beats_that_strike_the_same_minute_queue_one_run(sqlite_ledger: Engine, stack: Stack) -> None:
    # Given one confirmed diagnosis, a training worker, and two beats by mistake
    scene = Scene(engine=sqlite_ledger)
    scene.open(1)
    scene.diagnose(1)
    stack.start_worker("trainer", queue="training", WORKER_RETRAIN_MIN_LABELS="1")
    for name in ("beat1", "beat2"):
        stack.start_beat(name, WORKER_RETRAIN_CRON="* * * * *")

    # If both strike
    await_that(lambda: stack.log("trainer").count('"event": "schedule struck"') >= 2, 100)

    # Then one run waits, which goes on from the active model with the ledger's diagnoses, promoted by the gate alone
    (run,) = list_runs(sqlite_ledger)
    active = active_model(sqlite_ledger)
    assert active is not None
    assert run.state is RunState.QUEUED
    assert (run.params["data"], run.params["parent"]) == (None, active.digest)
    assert run.params["promote"] == read_settings(WorkerSettings).retrain_promote


def test_what_cannot_be_asked_for_is_said_at_once(stack: Stack, tmp_path: Path) -> None:
    for arguments, sentence in (
        (("--data", tmp_path / "data", "--labels-from-ledger"), "Give a folder with --data, or --labels-from-ledger"),
        (("--data", tmp_path / "data", "--stages", "lots"), "--stages cannot be read"),
        (("--data", tmp_path / "data", "--stages", "2x64,1x31"), "--stages cannot be read"),
        (("--labels-from-ledger", "--from", "abcdef"), "no model version"),
    ):
        assert sentence in stack.command("train", *arguments, code=2).stderr
    assert "no training run 7" in stack.command("runs", "log", 7, code=2).stderr
