"""The ledger as the commands open it: with its schema and a model to pin batches to."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from db.errors import EmptyLedger, SchemaMismatch
from db.models import active_model
from db.session import check_revision, open_ledger
from db.settings import DbSettings, HomeSettings, read_settings
from producer.errors import EXIT_UNAVAILABLE, EXIT_USAGE, ServiceProblem, UsageProblem
from producer.local import child_environment
from worker.objects import ObjectFolder, is_address
from worker.settings import WorkerSettings
from worker.shelf import Shelf, shelf_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this command works: home, ledger and broker, read from the environment once."""

    #: Absolute.
    home: Path
    #: The artifact store; absolute. Of one on object storage, this host's copy.
    store: Path
    #: The artifact store, where it is on object storage.
    objects: ObjectFolder | None
    #: May hold a password.
    ledger_url: str
    #: Whether the ledger is the one in the home.
    embedded: bool
    #: May hold a password; None means that a private Redis is used.
    broker_url: str | None
    worker_settings: WorkerSettings

    @property
    def shelf(self) -> Shelf:
        """Where pictures are kept."""
        return shelf_of(self.store, self.objects)


def read_place() -> Place:
    """Read the environment.

    Returns:
        Where to work.

    Raises:
        SettingsError: If a variable is wrong.
    """
    home, db, worker = read_settings(HomeSettings), read_settings(DbSettings), read_settings(WorkerSettings)
    return Place(
        home=home.home,
        store=home.store_path,
        objects=ObjectFolder.at(home.store, worker.s3_endpoint) if home.store and is_address(home.store) else None,
        ledger_url=db.ledger_url(home),
        embedded=db.url is None,
        broker_url=worker.broker_url.get_secret_value() if worker.broker_url else None,
        worker_settings=worker,
    )


def open_existing(place: Place) -> Engine:
    """Open the ledger for commands that need one to be there.

    Args:
        place: Where.

    Returns:
        The ledger.

    Raises:
        UsageProblem: If there is none yet.
        SchemaMismatch: If it has another schema.
    """
    if place.embedded and not (place.home / "ledger.sqlite").exists():
        raise UsageProblem("Nothing was submitted yet; start with `lesion-screen run ARCHIVE`.")
    engine = open_ledger(place.ledger_url)
    check_revision(engine)
    return engine


def open_prepared(place: Place, *, register: bool) -> tuple[Engine, str]:
    """Open the ledger to write a batch into it.

    One machine's is made, brought up to date and given the shipped model where that is needed. A server's is left alone
    unless it is empty and `register` says otherwise: its schema belongs to whoever runs it.

    Args:
        place: Where.
        register: Register the shipped model first, where the ledger has none or this machine's store may lack it.

    Returns:
        The ledger, and the digest of the active model.

    Raises:
        SchemaMismatch: If the ledger has another schema.
        UsageProblem: If no model is active.
        ServiceProblem: If registering fails.
    """
    engine = open_ledger(place.ledger_url)
    try:
        # A server that is away is found out here, where its error is understood, and not in the child process.
        if _is_to_register(engine, place, asked=register):
            _register(place)
        check_revision(engine)
        return engine, _insist_on_model(engine)
    except BaseException:
        engine.dispose()
        raise


def _insist_on_model(engine: Engine) -> str:
    model = active_model(engine)
    if model is None:
        raise UsageProblem("No model is active; run `python -m worker.register` once, and submit again.")
    return model.digest


def _is_to_register(engine: Engine, place: Place, *, asked: bool) -> bool:
    may = asked or place.embedded
    # A file has one machine, whose program and ledger go together.
    own = place.embedded or (asked and engine.dialect.name == "sqlite")
    try:
        check_revision(engine)
    except EmptyLedger:
        if not may:
            raise
        return True
    except SchemaMismatch:
        if not own:
            raise
        return True
    model = active_model(engine)
    if model is None:
        return may
    if not asked:
        return False
    # A role that loads batches may register nothing; and what a cluster's workers need is in their store.
    return own or (place.broker_url is None and not _is_stored(place, model.digest))


def _is_stored(place: Place, digest: str) -> bool:
    # On object storage it is looked for by whoever needs it.
    return place.objects is not None or (place.store / "models" / digest).is_dir()


def _register(place: Place) -> None:
    place.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = place.home / "run"
    here.mkdir(mode=0o700, exist_ok=True)
    # A process of its own: the model's files are not ours to open.
    done = subprocess.run(
        [sys.executable, "-m", "worker.register"],
        env=child_environment(place.home, os.environ),
        cwd=here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        log = place.home / "logs" / "register.log"
        log.parent.mkdir(mode=0o700, exist_ok=True)
        log.write_text(done.stderr, encoding="utf-8")
        # With these it ends in a sentence of its own; any other is a bug, whose traceback is in the log.
        told = done.stderr.strip().splitlines() if done.returncode in {EXIT_USAGE, EXIT_UNAVAILABLE} else []
        why = told[-1][:300] if told else f"worker.register ended with {done.returncode}."
        raise ServiceProblem(f"Preparing ledger and model failed: {why} See logs/register.log in LESION_SCREEN_HOME.")
