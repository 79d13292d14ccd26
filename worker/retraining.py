"""A training run: from a message to a model that the gate has judged."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from pydantic import ValidationError

from db.errors import LeaseLost
from db.models import ModelRow, active_model
from db.runs import (
    RunRow,
    beat_run,
    claim_run,
    count_gate_use,
    fail_run,
    finish_run,
    note_model,
    release_run,
    report_epoch,
    report_event,
)
from db.session import TRANSIENT_ERRORS, is_transient
from db.tables import RunState
from model.artifact import artifact_path, read_manifest
from model.build import BuildConfig, Workshop
from model.card import write_gate
from model.classifier import Classifier
from model.crossfit import Verdicts
from model.dataset import LabelledImage, digest_data
from model.errors import ArchiveUnavailable, GateError, ModelError
from model.gate import GateReport, judge_candidate
from model.judging import judge_images
from model.network import NetworkConfig
from model.package import package_model, program_commit
from model.recipes import configure, parse_stages
from model.splits import in_gate_set
from model.starting import StartWeights
from model.training import Progress
from worker.answering import read_payload
from worker.child import Child
from worker.contract import RunCheck, RunRequest
from worker.heartbeat import Heartbeat
from worker.patience import insist
from worker.register import register_manifest
from worker.training_data import FrozenData, freeze_data, read_gate_set

#: A fold of five judges the model where it is not cross-validated.
_FOLD: Final = 0

T = TypeVar("T")

_log = structlog.get_logger()


class _ToldToStop(Exception):  # noqa: N818 - says what is the case
    """The worker is to stop: the run goes back to the queue, and the next worker goes on from its last epoch."""


def answer_run(payload: Any, child: Child) -> RunState | None:
    """Do what a training message asks, if there is anything to do.

    Args:
        payload: What came over the wire; anything.
        child: The pool child's state.

    Returns:
        How the run stands now, or None where nothing was claimed or it is another worker's.

    Raises:
        Exception: A bug, or a lack of memory or disk; the run's lease runs out and counts as a worker lost.
    """
    check = read_payload(payload, RunCheck)
    if check is None or child.stopping():
        return None
    try:
        return _answer(check.run, child)
    except TRANSIENT_ERRORS as error:
        if not is_transient(error):
            raise
        # The feeder rings again once the lease has run out.
        _log.exception("database stayed away", run=check.run)
        return None


def run_folder(store: Path, run: RunRow) -> Path:
    """Say where a run keeps its checkpoints, curves and plots.

    Args:
        store: Folder of the artifact store, which the training workers share unless the store is on object storage.
        run: The run.

    Returns:
        Its folder. A number alone is that of another run in another ledger, or in one that was put back from a backup.
    """
    queued = datetime.fromtimestamp(run.created_at, UTC)
    return store / "runs" / f"{run.id}-{queued:%Y%m%dT%H%M%S}"


def _answer(run_id: int, child: Child) -> RunState | None:
    settings = child.settings
    run = insist(
        lambda: claim_run(child.engine, run_id, worker=child.name, stale_seconds=settings.run_lease_seconds),
        seconds=settings.stall_seconds,
        until=child.stopping,
    )
    if run is None:
        return None
    child.pass_step("after_claim")
    _log.info("run begun", run=run_id, attempt=run.attempt, crashes=run.crashes, worker=child.name)
    beat = Heartbeat(
        lambda: beat_run(child.engine, run_id, run.attempt),
        every=settings.heartbeat_seconds,
        stall=settings.run_stall_seconds,
        run=run_id,
        attempt=run.attempt,
    )
    with beat:
        state = _ended(_Training(run=run, child=child, heartbeat=beat))
    _log.info("run left", run=run_id, attempt=run.attempt, state=state)
    return state


def _ended(training: "_Training") -> RunState | None:
    try:
        training.work()
    except LeaseLost:
        # Cancelled, or another worker's by now.
        return None
    except (_ToldToStop, ArchiveUnavailable) as cause:
        training.tell(release_run)
        if isinstance(cause, ArchiveUnavailable):
            training.child.back_off()
        return RunState.QUEUED
    except ModelError as error:
        # These sentences are ours: about recipes, data folders and figures, and never about a patient.
        reason = str(error)
        training.tell(lambda engine, run_id, attempt: fail_run(engine, run_id, attempt, reason))
        return RunState.FAILED
    training.child.note_success()
    return RunState.DONE


@dataclass(slots=True, kw_only=True)
class _Training:
    """One attempt at a run."""

    run: RunRow
    child: Child
    heartbeat: Heartbeat
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = run_folder(self.child.store, self.run)

    @property
    def _packed(self) -> Path:
        return self.folder / "model"

    def tell(self, write: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Write to the ledger as the run's holder, with patience."""
        return insist(
            lambda: write(self.child.engine, self.run.id, self.run.attempt, *arguments, **named),
            seconds=self.child.settings.run_lease_seconds,
            until=self.child.stopping,
        )

    def work(self) -> None:
        """Train, register, judge and end the run.

        Raises:
            LeaseLost: If the run is not this attempt's any more.
            _ToldToStop: If the worker is to stop.
            ModelError: If the run cannot be finished.
        """
        try:
            request = RunRequest.model_validate(self.run.params)
        except ValidationError:
            raise ModelError(
                "The run asks for something that this program does not know: deploy its version."
            ) from None
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self.child.settings
        gate_set = read_gate_set(settings)
        data = freeze_data(self.child.engine, settings, request.data, self.folder, gate_set or ())
        self._pause_point()
        self.tell(report_event, "data", {"images": len(data.rows), "digest": data.digest, "left_out": data.left_out})
        digest = self.run.model_digest or self._make_model(request, data)
        # In the store by now; an earlier attempt may have died before it came here.
        shutil.rmtree(self._packed, ignore_errors=True)
        active = active_model(self.child.engine)
        report = self._judge(digest, active, data, gate_set)
        self.child.pass_step("after_gate")
        if report is not None:
            write_gate(artifact_path(self.child.store, digest), report)
            self.child.artifacts.publish_gate(digest)
            self.child.pass_step("after_card")
        over = active.digest if active and report and _may_promote(request, report) else None
        gate = None if report is None else report.model_dump(mode="json")
        self.tell(finish_run, gate=gate, promote_over=over)
        self.child.pass_step("after_finish")

    def _make_model(self, request: RunRequest, data: FrozenData) -> str:
        parent = None if request.parent is None else self.child.artifacts.fetch(request.parent)
        packed = self._packed
        if not packed.exists():
            config = _configure(request, parent)
            weights = StartWeights(otherwise=parent or (None if request.weights == "none" else request.weights))
            workshop = Workshop(data.rows, config, weights=weights, run=self.folder, report=self._report)
            built = workshop.build(None if request.cross_validate else _FOLD)
            self._pause_point()
            source = "diagnoses confirmed in this ledger" if request.data is None else "a data folder"
            package_model(
                built,
                packed,
                name=f"{config.network.backbones} with soft attention, run {self.run.id}",
                data=f"{len(data.rows):,} images with {source}.",
                git_commit=program_commit(),
            )
        self.child.pass_step("after_packing")
        manifest = read_manifest(packed)
        self.child.artifacts.install(packed)
        self.child.pass_step("after_install")
        insist(
            lambda: register_manifest(self.child.engine, manifest, parent=request.parent),
            seconds=self.child.settings.run_lease_seconds,
            until=self.child.stopping,
        )
        self.child.pass_step("after_registration")
        self.tell(note_model, manifest.digest)
        self.child.pass_step("after_noting")
        return manifest.digest

    def _judge(
        self, digest: str, active: ModelRow | None, data: FrozenData, gate_set: Sequence[LabelledImage] | None
    ) -> GateReport | None:
        if active is None or active.digest == digest:
            return None
        rows = gate_set or [row for row in data.rows if in_gate_set(row.lesion_id)]
        name = digest_data(rows)
        uses = insist(
            lambda: count_gate_use(self.child.engine, self.run.id, name),
            seconds=self.child.settings.run_lease_seconds,
            until=self.child.stopping,
        )
        described = {"active": active.digest, "gate_set": name, "uses": uses, "independent": gate_set is not None}
        try:
            candidate, before = (self._verdicts(one, rows) for one in (digest, active.digest))
            report = GateReport(**described, decision=judge_candidate(candidate, before))
        except GateError as error:
            report = GateReport(**described, decision=None, problem=str(error))
        self.tell(report_event, "gate", {"verdict": report.verdict, "uses": uses})
        return report

    def _verdicts(self, digest: str, rows: Sequence[LabelledImage]) -> Verdicts:
        if not rows:
            raise GateError("None of the images belongs to the gate set: there is nothing to compare the models on.")
        classifier = Classifier.load(self.child.artifacts.fetch(digest))
        return judge_images(classifier, rows, lambda _: self._pause_point())

    def _report(self, part: str, progress: Progress) -> None:
        self._pause_point()
        if progress.row is not None:
            row: Mapping[str, Any] = {"part": part, "epochs": progress.epochs, **progress.row}
            self.tell(report_epoch, row)

    def _pause_point(self) -> None:
        self.heartbeat.note_progress()
        self.heartbeat.check()
        if self.child.stopping():
            raise _ToldToStop


def _configure(request: RunRequest, parent: Path | None) -> BuildConfig:
    stages = None if request.stages is None else parse_stages(request.stages)
    config = configure(request.recipe, backbone=request.backbone, input_size=request.input_size, stages=stages)
    if parent is None:
        return config
    if request.backbone or request.input_size:
        raise ModelError("A model that is gone on from keeps its network: leave the backbone and the size away.")
    network = NetworkConfig.model_validate(read_manifest(parent).network.model_dump())
    return config.on(network)


def _may_promote(request: RunRequest, report: GateReport) -> bool:
    return request.promote == "gate" and report.verdict == "promote"
