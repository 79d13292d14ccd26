"""What one pool child holds: its settings, the ledger, the loaded models and how it backs off."""

import contextlib
import importlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog
from platformdirs import user_cache_path
from sqlalchemy import Engine

from db.devices import DeviceRow, record_device
from db.models import active_model
from db.session import TRANSIENT_ERRORS, check_revision, open_ledger
from db.settings import DbSettings, HomeSettings, read_settings
from model.errors import ModelError
from model.hush import hush_tensorflow
from worker.errors import ModelUnavailable
from worker.failpoints import Step, failpoint, no_failpoint
from worker.gpu import take_own_gpu
from worker.objects import ObjectFolder
from worker.patience import insist, pause, wait
from worker.screening import Scorer
from worker.settings import WorkerSettings
from worker.shelf import Shelf, shelf_of
from worker.store import ArtifactStore, place_of_objects
from worker.vitals import write_vitals

#: Models kept in memory: the active one, and one more for batches that are pinned to another.
_MODELS_KEPT: Final = 2

#: A child that finds no database waits this long before it gives its start up; the next message tries again.
_START_SECONDS: Final = 60

#: The longest pause while an archive or a model is away, seconds.
_LONGEST_BACK_OFF: Final = 60

#: What a child scores on is told to the ledger this often at most, seconds.
_TELL_SECONDS: Final = 60

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Child:
    """The state of one pool child, built after the fork.

    Attributes:
        settings: The worker's.
        engine: The ledger.
        store: Folder of the artifacts on this host.
        node: The Celery node's name.
        stopping: Whether the worker is to stop soon.
        pass_step: Called at each named step.
        gpus: How many the machine has for its workers.
        objects: The artifact store, where it is on object storage.
    """

    settings: WorkerSettings
    engine: Engine
    store: Path
    node: str
    stopping: Callable[[], bool]
    pass_step: Callable[[Step], None] = no_failpoint
    gpus: int = 0
    objects: ObjectFolder | None = None
    _models: OrderedDict[str, Scorer] = field(default_factory=OrderedDict)
    _setbacks: int = 0
    _told_at: float = -_TELL_SECONDS

    @property
    def name(self) -> str:
        """What the ledger calls this worker."""
        return f"{self.node}/{os.getpid()}"

    @property
    def artifacts(self) -> ArtifactStore:
        """The artifact store."""
        return ArtifactStore(folder=self.store, objects=self.objects)

    @property
    def shelf(self) -> Shelf:
        """Where pictures are kept."""
        return shelf_of(self.store, self.objects)

    @classmethod
    def open(cls, name: str, stopping: Callable[[], bool]) -> Self:
        """Read the settings, open the ledger, check its schema and load the active model.

        Args:
            name: The Celery node's name.
            stopping: Whether the worker is to stop soon.

        Returns:
            A child that is ready to work.

        Raises:
            LedgerError: If a setting or the schema is not sound.
            sqlalchemy.exc.OperationalError: If the database stayed away.
        """
        # Whose chatter would stand among the lines of the log.
        hush_tensorflow()
        settings, home = read_settings(WorkerSettings), read_settings(HomeSettings)
        gpus = take_own_gpu(settings.gpu_index)
        database = read_settings(DbSettings)
        engine = open_ledger(database.ledger_url(home), pool_size=database.pool_size)
        insist(lambda: check_revision(engine), seconds=_START_SECONDS, until=stopping)
        child = cls(
            settings=settings,
            engine=engine,
            store=home.store_path,
            objects=place_of_objects(home, settings),
            node=name,
            stopping=stopping,
            pass_step=failpoint(settings),
            gpus=len(gpus),
        )
        child.warm_up()
        return child

    def warm_up(self) -> None:
        """Load the active model, so that the first chunk does not wait for it."""
        active = insist(lambda: active_model(self.engine), seconds=_START_SECONDS, until=self.stopping)
        if active is None:
            return
        try:
            self.classifier(active.digest)
        except ModelUnavailable:
            # Whether it is needed is for a chunk to say.
            _log.exception("active model cannot be loaded", model=active.digest)

    def classifier(self, digest: str) -> Scorer:
        """Return a model, loaded at most once as long as it is in use.

        Args:
            digest: The model.

        Returns:
            The loaded classifier.

        Raises:
            ModelUnavailable: If the store does not have it, or what it has was refused.
        """
        if digest in self._models:
            self._models.move_to_end(digest)
            return self._models[digest]
        while len(self._models) >= _MODELS_KEPT:
            self._models.popitem(last=False)
        loaded = self._load(digest)
        self._models[digest] = loaded
        return loaded

    def _load(self, digest: str) -> Scorer:
        given = self.settings
        module, _, attribute = given.classifier.partition(":")
        kind = getattr(importlib.import_module(module), attribute)
        try:
            loaded: Scorer = kind.load(
                self.artifacts.fetch(digest),
                precision=given.precision,
                batch_size=given.batch_size,
                engine=given.engine,
                converted=user_cache_path("lesion-screen") / "converted",
            )
        except (ModelError, OSError) as error:
            raise ModelUnavailable(f"Model {digest} cannot be loaded ({type(error).__name__}).") from error
        if loaded.digest != digest:
            raise ModelUnavailable(f"The store has another model under {digest}.")
        _log.info(
            "model loaded",
            model=digest,
            worker=self.name,
            device=loaded.device,
            precision=loaded.precision,
            batch_size=loaded.batch_size,
        )
        self._complain(loaded)
        return loaded

    def _complain(self, loaded: Scorer) -> None:
        """Say aloud what costs speed and would go unseen otherwise."""
        if loaded.precision != self.settings.precision:
            _log.error(
                "precision refused, verdicts would differ", model=loaded.digest, precision=self.settings.precision
            )
        if self.gpus and loaded.device == "cpu":
            _log.error("this machine has GPUs and TensorFlow uses none", worker=self.name, gpus=self.gpus)
            sys.stderr.write(
                f"This machine has {self.gpus} GPU(s) and TensorFlow uses none of them: images are scored on the CPU, "
                "many times slower. Install requirements-gpu.lock, and see `lesion-screen doctor`.\n"
            )

    def note_success(self) -> None:
        """Forget setbacks: the next one starts with a short pause."""
        self._setbacks = 0

    def note_life(self, *, busy: bool, leased: bool = False) -> None:
        """Leave a sign of life for the health check.

        Args:
            busy: Whether a message is worked on.
            leased: Whether a chunk's lease is held.
        """
        loaded = next(reversed(self._models.values()), None)
        device = loaded.device if loaded else None
        write_vitals(self.node, busy=busy, models=tuple(self._models), device=device, leased=leased)
        if loaded is not None and not busy and time.monotonic() - self._told_at > _TELL_SECONDS:
            self._told_at = time.monotonic()
            self._tell(loaded)

    def _tell(self, loaded: Scorer) -> None:
        row = DeviceRow(
            worker=self.node,
            kind=loaded.device,
            memory_bytes=loaded.memory_in_use(),
            batch_size=loaded.batch_size,
        )
        # Nobody depends on it, and a ledger that is away has been complained of.
        with contextlib.suppress(*TRANSIENT_ERRORS):
            record_device(self.engine, row)

    def back_off(self) -> None:
        """Wait after a setback that is no chunk's fault, longer each time in a row, and never once told to stop."""
        self._setbacks += 1
        wait(pause(self._setbacks + 2, longest=_LONGEST_BACK_OFF), self.stopping)
