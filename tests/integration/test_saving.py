"""Thirty seeded kills while a trained model is saved, registered, judged and promoted."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from db.audit import verify_chain
from db.models import active_model, list_models
from db.run_log import list_events
from db.runs import get_run, queue_run
from db.session import open_ledger
from db.settings import read_settings
from db.tables import ModelState, RunState
from model.artifact import artifact_path, read_manifest, shipped_artifact, write_artifact
from model.dataset import LabelledImage
from model.gate import GateDecision
from model.metadata import PatientMetadata
from worker import retraining
from worker.child import Child
from worker.register import register_shipped_model
from worker.retraining import answer_run, run_folder
from worker.settings import WorkerSettings
from worker.training_data import FrozenData

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

#: On each of the two databases, at steps of its own: thirty in all.
KILLS = 15
YES = GateDecision(verdict="promote", reasons=(), images=1, lesions=1, malignant_lesions=1, draws=1, seed=0)


class _Steps:
    """Counts what a process does to disk and ledger, and kills it at one of these steps."""

    def __init__(self, last: int | None) -> None:
        self.taken, self._last = 0, last

    def take(self, *_: Any) -> None:
        # A heartbeat beside it beats when it likes.
        self.taken += threading.current_thread() is threading.main_thread()
        if self.taken == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, engine: Engine, folder: Path) -> None:
        """Count every file-system call below a folder, every statement and every commit."""

        def heard(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open" or name.startswith(("os.", "shutil.")):
                told = " ".join(os.fsdecode(one) for one in arguments if isinstance(one, (str, bytes, os.PathLike)))
                if str(folder) in told:
                    self.take()

        sys.addaudithook(heard)
        for kind in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(engine, kind, self.take)


class _Saving:
    """Runs whose training is done: what is left is to save, register, judge and promote."""

    def __init__(self, ledger: Engine, store: Path) -> None:
        self.ledger, self.store = ledger, store
        self.url = ledger.url.render_as_string(hide_password=False)

    def attempt(self, run: int, kill_at: int | None = None) -> int:
        """Work on a run in a process of its own; returns the steps that it took, or minus the signal it died of."""
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            # Nothing of the parent's goes on here, its connections included.
            signal.alarm(60)
            steps = _Steps(kill_at)
            try:
                engine = open_ledger(self.url)
                steps.watch(engine, self.store)
                child = Child(
                    settings=read_settings(WorkerSettings),
                    engine=engine,
                    store=self.store,
                    node="w",
                    stopping=lambda: False,
                )
                state = answer_run({"version": 1, "run": run}, child)
                os.write(writing, f"{state} {steps.taken}".encode())
            except BaseException:  # noqa: BLE001 - a forked test must not go on as pytest
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        _, status = os.waitpid(process, 0)
        with os.fdopen(reading) as answer:
            said = answer.read().split()
        if os.WIFSIGNALED(status):
            return -os.WTERMSIG(status)
        assert said[:1] == ["done"], get_run(self.ledger, run).progress
        return int(said[1])

    def queue(self) -> int:
        return queue_run(self.ledger, {"promote": "gate", "data": "unused"}, "test")

    def abandon(self) -> None:
        """Let the dead worker's lease run out."""
        with self.ledger.begin() as connection:
            connection.execute(text("UPDATE training_run SET heartbeat = heartbeat - 3600 WHERE state = 'running'"))

    def active(self) -> str:
        """Name the active model, and fail where a registered one is not whole."""
        for model in list_models(self.ledger):
            folder = artifact_path(self.store, model.digest)
            manifest = read_manifest(folder)
            assert manifest.digest == model.digest
            assert manifest.weights_sha256 == hashlib.sha256((folder / "weights.h5").read_bytes()).hexdigest()
        active = active_model(self.ledger)
        assert active is not None
        return active.digest


@pytest.fixture
def saving(ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Saving:
    """A ledger with the shipped model, and runs whose networks come without training and that the gate says yes to."""
    store = tmp_path / "store"
    register_shipped_model(ledger, store)
    manifest = read_manifest(shipped_artifact())
    # Small, so that a kill meets the writing of files no more rarely than of rows.
    weights = b"weights" * 1000
    row = LabelledImage(
        root=tmp_path,
        path="a.png",
        image_id="1" * 64,
        lesion_id="l",
        label=0,
        patient=PatientMetadata(),
        dx_type="histo",
    )

    class Trained:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def build(self, _: int | None) -> None:
            return None

    def package(_: None, folder: Path, *, name: str, **__: Any) -> None:
        changed = manifest.model_copy(update={"name": name, "weights_sha256": hashlib.sha256(weights).hexdigest()})
        write_artifact(folder, changed, weights, "card")

    monkeypatch.setattr(retraining, "Workshop", Trained)
    monkeypatch.setattr(retraining, "package_model", package)
    monkeypatch.setattr(retraining, "digest_data", lambda _: "2" * 64)
    monkeypatch.setattr(retraining, "freeze_data", lambda *_: FrozenData(rows=(row,), left_out={}))
    monkeypatch.setattr(retraining, "read_gate_set", lambda _: (row,))
    monkeypatch.setattr(retraining._Training, "_verdicts", lambda *_: None)
    monkeypatch.setattr(retraining, "judge_candidate", lambda *_: YES)
    return _Saving(ledger, store)


def test_kills_while_saving_leave_the_old_model_active_or_promote_the_new_one(saving: _Saving) -> None:
    # Given how many steps saving takes
    steps = min(saving.attempt(saving.queue()) for _ in range(2))
    assert steps > 60
    before = saving.active()
    promoted = 2

    for seed in range(KILLS):
        # If a run's worker is killed at any one of them
        kill_at = random.Random(f"{saving.ledger.dialect.name} {seed}").randint(1, steps)
        run = saving.queue()
        assert saving.attempt(run, kill_at) == -signal.SIGKILL, f"seed {seed}"

        # Then the old model is active, unless the run has ended: both or neither
        state = get_run(saving.ledger, run).state
        assert (saving.active() != before) == (state is RunState.DONE), f"seed {seed}"
        # And the next worker ends it, without another model of the same run
        if state is not RunState.DONE:
            saving.abandon()
            saving.attempt(run)
        after = saving.active()
        assert after == get_run(saving.ledger, run).model_digest
        promoted += 1
        before = after
        assert len(list_models(saving.ledger)) == promoted + 1
        kinds = [one.kind for one in list_events(saving.ledger, run)]
        assert kinds.count("done") == 1
        assert not (run_folder(saving.store, get_run(saving.ledger, run)) / "model").exists()

    # And every promotion is in the trail, once, and nothing half-written is left that would be taken for a model
    assert verify_chain(saving.ledger)
    with saving.ledger.connect() as connection:
        trail = connection.execute(text("SELECT count(*) FROM audit WHERE action = 'activate_model'")).scalar_one()
    assert trail == 1 + promoted
    states = [model.state for model in list_models(saving.ledger)]
    assert states.count(ModelState.ACTIVE) == 1
    assert states.count(ModelState.CANDIDATE) == 0
