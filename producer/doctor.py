"""`lesion-screen doctor`: looks at everything that screening needs, a line each with what to do."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Final

from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from db.batches import list_batches
from db.clock import clock
from db.errors import LedgerError, SettingsError
from db.refusals import explain_refusal
from db.session import check_revision, open_ledger, read
from db.tables import BatchState
from producer.broker import find_server
from producer.errors import EXIT_DONE, EXIT_SOME_FAILED, ServiceProblem
from producer.ledger import Place, read_place
from producer.local import child_environment
from producer.paths import nearest_folder
from producer.report import printable
from producer.terminal import print_json
from worker.errors import WorkerError
from worker.health import check_feeder
from worker.objects import ObjectFolder

#: An export of a million rows and a model of a large network fit into that.
_LEAST_FREE_BYTES: Final = 2 * 1024**3
#: Leases are dated by the database's clock alone; logs of several machines are compared by their own.
_MOST_SKEW_SECONDS: Final = 5
_PROBE_SECONDS: Final = 180


class Grade(StrEnum):
    """How a finding is to be taken."""

    GOOD = "good"
    #: Screening goes on, and somebody should look.
    ODD = "odd"
    #: Screening cannot work so.
    BAD = "bad"


_MARKS: Final = {Grade.GOOD: "[green]ok[/]", Grade.ODD: "[yellow]look[/]", Grade.BAD: "[red]FAIL[/]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look has found."""

    part: str
    grade: Grade
    #: What is the case, and what to do where it is not good; nothing about a patient.
    text: str


def examine(*, quick: bool, as_json: bool) -> int:
    """Do `lesion-screen doctor`.

    Args:
        quick: Load neither TensorFlow nor the model.
        as_json: Print JSON alone.

    Returns:
        0, or 1 where something is bad.
    """
    found, console = [], Console(quiet=as_json)
    for finding in _look(read_place(), quick=quick):
        found.append(finding)
        console.print(_line(finding), highlight=False)
    well = all(finding.grade is not Grade.BAD for finding in found)
    if as_json:
        print_json({"well": well, "findings": [asdict(finding) for finding in found]})
    return EXIT_DONE if well else EXIT_SOME_FAILED


def _line(finding: Finding) -> Table:
    line = Table.grid(padding=(0, 1))
    line.add_column(width=4)
    line.add_column(width=8)
    line.add_column()
    line.add_row(_MARKS[finding.grade], finding.part, printable(finding.text))
    return line


def _look(place: Place, *, quick: bool) -> Iterator[Finding]:
    yield _versions()
    yield _disk(place)
    engine, finding = _ledger(place)
    yield finding
    yield _broker(place)
    if place.objects is not None:
        yield _store(place.objects)
    if engine is not None:
        yield _clocks(engine)
        yield from _archives(engine, place)
        if place.broker_url is not None:
            yield _feeder(engine, place)
        engine.dispose()
    if not quick:
        yield from _model(place)


def _good(part: str, text: str) -> Finding:
    return Finding(part=part, grade=Grade.GOOD, text=text)


def _odd(part: str, text: str) -> Finding:
    return Finding(part=part, grade=Grade.ODD, text=text)


def _bad(part: str, text: str) -> Finding:
    return Finding(part=part, grade=Grade.BAD, text=text)


def _versions() -> Finding:
    names = ("lesion-screen", "celery", "redis", "sqlalchemy", "keras")
    python = ".".join(map(str, sys.version_info[:3]))
    return _good("versions", ", ".join((f"Python {python}", *(f"{name} {version(name)}" for name in names))))


def _disk(place: Place) -> Finding:
    place.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(place.home, os.W_OK):
        return _bad("disk", "LESION_SCREEN_HOME cannot be written to: check who owns it.")
    if place.home.stat().st_mode & 0o077:
        return _odd("disk", "LESION_SCREEN_HOME may be read by others: chmod 700 keeps patients' data to its owner.")
    free = min(shutil.disk_usage(nearest_folder(folder)).free for folder in (place.home, place.store))
    if free < _LEAST_FREE_BYTES:
        return _odd("disk", f"{free / 1024**3:.1f} GiB are free where home or store lie: make room, or move them.")
    return _good("disk", f"{free / 1024**3:,.0f} GiB are free.")


def _ledger(place: Place) -> tuple[Engine | None, Finding]:
    if place.embedded and not (place.home / "ledger.sqlite").exists():
        return None, _good("ledger", "There is none yet; the first `lesion-screen run ARCHIVE` makes it.")
    try:
        engine = open_ledger(place.ledger_url)
        try:
            check_revision(engine)
        except BaseException:
            engine.dispose()
            raise
    except LedgerError as error:
        return None, _bad("ledger", str(error))
    except SQLAlchemyError as error:
        why = explain_refusal(error) or f"It fails ({type(error).__name__}): check DB_URL, and what database that is."
        return None, _bad("ledger", why)
    except OSError as error:
        return None, _bad("ledger", f"The folder of its file cannot be made ({error.strerror}): check DB_URL.")
    return engine, _good("ledger", f"{engine.dialect.name} answers, with the schema that is needed.")


def _broker(place: Place) -> Finding:
    if place.broker_url is None:
        try:
            return _good("redis", f"A private one is used: {find_server().name}.")
        except ServiceProblem as error:
            return _bad("redis", str(error))
    try:
        with closing(Redis.from_url(place.broker_url, socket_timeout=5, socket_connect_timeout=5)) as client:
            told = client.info()
    except (RedisError, ValueError) as error:
        return _bad("redis", f"It does not answer ({type(error).__name__}): check WORKER_BROKER_URL, and that it runs.")
    if told.get("maxmemory_policy") != "noeviction":
        return _bad("redis", "It may evict messages when its memory is full: set maxmemory-policy noeviction.")
    if not told.get("aof_enabled"):
        return _odd("redis", "It keeps nothing over a restart: set appendonly yes. The feeder rings anew, only later.")
    return _good("redis", f"Version {told.get('redis_version')} answers; it evicts nothing and keeps its queue.")


def _clocks(engine: Engine) -> Finding:
    before = time.time()
    with read(engine) as connection:
        theirs = connection.execute(select(clock())).scalar_one()
    skew = theirs - (before + time.time()) / 2
    if abs(skew) > _MOST_SKEW_SECONDS:
        return _odd(
            "clock", f"The database's is {skew:+.0f} s off this machine's: set up NTP, or logs cannot be compared."
        )
    return _good("clock", "This machine's and the database's agree.")


def _archives(engine: Engine, place: Place) -> Iterator[Finding]:
    waiting = [batch for batch in list_batches(engine) if batch.state in {BatchState.OPEN, BatchState.PAUSED}]
    away = [str(batch.id) for batch in waiting if not _can_read(place, batch.source)]
    if away:
        yield _odd(
            "archives",
            f"Those of batch {', '.join(away)} cannot be read from here: mount them, or name them in "
            "WORKER_ARCHIVE_ROOTS, if workers run on this machine; for s3:// look at WORKER_S3_ENDPOINT, the "
            "credentials, and the extra s3; for dicomweb:// at WORKER_DICOMWEB_SERVER, its credentials, and the extra "
            "dicom.",
        )
    elif waiting:
        yield _good("archives", f"Those of the newest {len(waiting)} batches can be read from here.")


def _can_read(place: Place, source: str) -> bool:
    try:
        root = place.worker_settings.archive_root(source)
    except SettingsError:
        return False
    if isinstance(root, Path):
        return root.is_dir() and os.access(root, os.R_OK | os.X_OK)
    return root is not None and root.answers()


def _store(objects: ObjectFolder) -> Finding:
    if objects.answers():
        return _good("store", "The object storage answers.")
    return _bad(
        "store",
        "The object storage does not answer, refuses the credentials or is empty: check LESION_SCREEN_STORE, "
        "WORKER_S3_ENDPOINT and boto's credentials, then run `python -m worker.register`.",
    )


def _feeder(engine: Engine, place: Place) -> Finding:
    try:
        check_feeder(engine, place.worker_settings, "")
    except WorkerError as error:
        return _bad("feeder", str(error))
    return _good("feeder", "One is at work.")


def _model(place: Place) -> Iterator[Finding]:
    if place.embedded and not (place.home / "ledger.sqlite").exists():
        return
    try:
        # A process of its own: TensorFlow is not for a command line to load.
        done = subprocess.run(
            [sys.executable, "-m", "worker.probe"],
            env=child_environment(place.home, os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
        told = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        yield _bad("model", "TensorFlow cannot be loaded here: install again, and see `python -m worker.probe`.")
        return
    if told["problem"] is None:
        yield _good("model", f"The active one ({told['model'][:12]}) loads and repeats its golden prediction.")
    else:
        yield _bad("model", told["problem"])
    if told["gpus"]:
        yield _good("gpu", f"TensorFlow {told['tensorflow']} sees {told['gpus']}; run one worker for each.")
    else:
        yield _odd("gpu", f"TensorFlow {told['tensorflow']} sees none: workers of this machine score on the CPU.")
