"""What one pool child holds: its settings, the ledger, the loaded models and how it backs off."""

import importlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog
from sqlalchemy import Engine

from db.models import active_model
from db.session import check_revision, open_ledger
from db.settings import DbSettings, HomeSettings, read_settings
from model.errors import ModelError
from worker.errors import ModelUnavailable
from worker.failpoints import Step, failpoint, no_failpoint
from worker.objects import ObjectFolder
from worker.patience import insist, pause, wait
from worker.screening import Scorer
from worker.settings import WorkerSettings
from worker.store import ArtifactStore, place_of_objects
from worker.vitals import write_vitals

#: Models kept in memory: the active one, and one more for batches that are pinned to another.
_MODELS_KEPT: Final = 2

#: A child that finds no database waits this long before it gives its start up; the next message tries again.
_START_SECONDS: Final = 60

#: The longest pause while an archive or a model is away, seconds.
_LONGEST_BACK_OFF: Final = 60

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
        objects: The artifact store, where it is on object storage.
    """

    settings: WorkerSettings
    engine: Engine
    store: Path
    node: str
    stopping: Callable[[], bool]
    pass_step: Callable[[Step], None] = no_failpoint
    objects: ObjectFolder | None = None
    _models: OrderedDict[str, Scorer] = field(default_factory=OrderedDict)
    _setbacks: int = 0

    @property
    def name(self) -> str:
        """What the ledger calls this worker."""
        return f"{self.node}/{os.getpid()}"

    @property
    def artifacts(self) -> ArtifactStore:
        """The artifact store."""
        return ArtifactStore(folder=self.store, objects=self.objects)

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
        settings, home = read_settings(WorkerSettings), read_settings(HomeSettings)
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
        # TensorFlow writes its start-up chatter past the logs.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        module, _, attribute = self.settings.classifier.partition(":")
        kind = getattr(importlib.import_module(module), attribute)
        try:
            loaded: Scorer = kind.load(self.artifacts.fetch(digest))
        except (ModelError, OSError) as error:
            raise ModelUnavailable(f"Model {digest} cannot be loaded ({type(error).__name__}).") from error
        if loaded.digest != digest:
            raise ModelUnavailable(f"The store has another model under {digest}.")
        _log.info("model loaded", model=digest, worker=self.name)
        return loaded

    def note_success(self) -> None:
        """Forget setbacks: the next one starts with a short pause."""
        self._setbacks = 0

    def note_life(self, *, busy: bool) -> None:
        """Leave a sign of life for the health check.

        Args:
            busy: Whether a message is worked on.
        """
        write_vitals(self.node, busy=busy, models=tuple(self._models))

    def back_off(self) -> None:
        """Wait after a setback that is no chunk's fault, longer each time in a row, and never once told to stop."""
        self._setbacks += 1
        wait(pause(self._setbacks + 2, longest=_LONGEST_BACK_OFF), self.stopping)
