"""The kill campaign: seeded SIGKILLs of workers, children, feeder, Redis and PostgreSQL while an archive is screened.

`make faults` prints one line: kills, lost, doubled, recovery.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import psutil
from sqlalchemy import BindParameter, Engine, bindparam, text

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import KILLS_WORKER
from db.control import retry_batch
from db.health import check_batch
from db.session import TRANSIENT_ERRORS, is_transient, open_ledger
from model.images import encode_image
from tests.conftest import migrate
from tests.faults.outcome import Outcome
from tests.faults.schedule import PACE, WORKERS, Kill, draw_schedule
from tests.servers import PostgresServer, RedisServer, await_that
from tests.stack import SHORT_TIMES, Stack

T = TypeVar("T")

#: Workers are slow enough that most of them hold a chunk when they are killed; with production's leases a chunk takes
#: as long as 256 images on a good CPU, so that the queue is as full as it would be.
SETTINGS: Final = {
    "short": {"LIGHT_IMAGE_SECONDS": "0.03"} | SHORT_TIMES,
    "production": {"LIGHT_IMAGE_SECONDS": "0.1"},
}
CHUNK_ITEMS: Final = {"short": 20, "production": 64}

#: Another batch is submitted when no more chunks than these are left, as long as there are kills to come.
FEW_CHUNKS: Final = 2 * len(WORKERS)

#: After the last kill everything must be finished within so many seconds.
FINISH_SECONDS: Final = 300

#: A worker that was started again has a pool child within so many seconds.
START_SECONDS: Final = 60

#: Of a hundred files so many are no images, and so many are copies of another one.
BROKEN, COPIES = 1, 1


class Campaign:
    """Servers, workers, an archive, and the hand that kills. To be used from the main thread.

    Args:
        folder: Where archive and logs lie; must be empty.
        images: Files of the archive.
        pace: "short" leases of 3 s, or "production" settings.
    """

    def __init__(self, folder: Path, *, images: int, pace: str) -> None:
        self.outcome = Outcome()
        self._archive, self._chunk_items = folder / "archive", CHUNK_ITEMS[pace]
        #: What becomes of each file.
        self._expected = draw_archive(self._archive, images)
        self._batches: list[int] = []
        self._closing = contextlib.ExitStack()
        try:
            self._start(folder, pace)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path, pace: str) -> None:
        self._postgres, self._redis = PostgresServer.prepare(), RedisServer.prepare()
        self._closing.callback(self._postgres.remove)
        self._closing.callback(self._redis.remove)
        self._postgres.start()
        self._redis.start()
        url = self._postgres.url("postgres")
        migrate(url)
        self._engine: Engine = open_ledger(url)
        self._closing.callback(self._engine.dispose)
        self._stack = Stack.prepare(folder / "logs", ledger_url=url, redis_url=self._redis.url, settings=SETTINGS[pace])
        self._closing.callback(self._stack.stop)
        self._watch = RecoveryWatch(url)
        self._closing.callback(self._watch.stop)
        self._feeder = self._stack.start_feeder()
        self._workers = {name: self._stack.start_worker(name) for name in WORKERS}

    def close(self) -> None:
        """End everything."""
        self._closing.close()

    def run(self, schedule: Sequence[Kill]) -> Outcome:
        """Kill by the schedule while batch after batch is screened, then wait for the last and count."""
        begun = time.monotonic()
        self._submit()
        for kill in schedule:
            time.sleep(kill.after_seconds)
            if self._number("SELECT count(*) FROM chunk WHERE state <> 'done'") <= FEW_CHUNKS:
                self._submit()
            self._kill(kill)
            self._start_ended_workers()
        self._finish()
        # Nobody dies any more: whom bad luck has quarantined gets its verdict now.
        self.outcome.quarantined = self._number("SELECT count(*) FROM item WHERE state = 'quarantined'")
        for batch in self._batches:
            retry_batch(self._engine, batch, "campaign", reason=KILLS_WORKER)
        self._finish()
        self.outcome.recoveries = self._watch.stop()
        self._count()
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _submit(self) -> None:
        # Another model each time: nothing is known of these images then.
        model = secrets.token_hex(32)
        names = sorted(self._expected)

        batch = start_batch(self._engine, name="campaign", source=str(self._archive), model_digest=model)
        for start in range(0, len(names), self._chunk_items):
            add_chunk(self._engine, batch, [_row(name) for name in names[start : start + self._chunk_items]])
        finish_loading(self._engine, batch, secrets.token_hex(32))
        self._batches.append(batch)

    def _number(self, query: str) -> int:
        def ask() -> int:
            with self._engine.connect() as connection:
                return int(connection.execute(text(query)).scalar_one())

        return insist(ask)

    def _finish(self) -> None:
        unfinished = "SELECT count(*) FROM item WHERE state = 'open'"
        deadline = time.monotonic() + FINISH_SECONDS
        while self._number(unfinished) and time.monotonic() < deadline:
            self._start_ended_workers()
            time.sleep(0.1)
        self.outcome.unfinished = self._number(unfinished)

    def _start_ended_workers(self) -> None:
        # A supervisor's work.
        for name, process in self._workers.items():
            if process.poll() is not None:
                self._workers[name] = self._stack.start_worker(name)

    def _kill(self, kill: Kill) -> None:
        act = {
            "worker": self._kill_worker,
            "parent": self._kill_worker,
            "child": self._kill_child,
            "feeder": self._kill_feeder,
            "redis": self._kill_redis,
            "redis wiped": self._kill_redis,
            "postgres": self._kill_postgres,
            "backend": self._kill_backend,
        }
        act[kill.kind](kill)
        self.outcome.kills[kill.kind] += 1

    def _await_child(self, name: str) -> psutil.Process:
        children: list[psutil.Process] = []

        def is_there() -> bool:
            self._start_ended_workers()
            with contextlib.suppress(psutil.NoSuchProcess):
                found = psutil.Process(self._workers[name].pid).children()
                children[:] = [child for child in found if child.status() != psutil.STATUS_ZOMBIE]
            return bool(children)

        await_that(is_there, START_SECONDS)
        return children[0]

    def _kill_worker(self, kill: Kill) -> None:
        child = self._await_child(kill.worker)
        worker = self._workers[kill.worker]
        if kill.kind == "worker":
            os.killpg(worker.pid, signal.SIGKILL)
            self._watch.expect(f"{kill.worker}@test/{child.pid}")
        else:
            # Its child may finish what it holds, as another attempt's zombie or not.
            worker.kill()
        worker.wait()

    def _kill_child(self, kill: Kill) -> None:
        child = self._await_child(kill.worker)
        child.kill()
        self._watch.expect(f"{kill.worker}@test/{child.pid}")

    def _kill_feeder(self, _kill: Kill) -> None:
        os.killpg(self._feeder.pid, signal.SIGKILL)
        self._feeder.wait()
        self._feeder = self._stack.start_feeder()

    def _kill_redis(self, kill: Kill) -> None:
        self._redis.kill()
        if kill.kind == "redis wiped":
            self._redis.forget()
            # Until it is wiped again it is one without persistence, or one with.
            self._redis.persistent = not self._redis.persistent
        time.sleep(kill.away_seconds)
        self._redis.start()

    def _kill_postgres(self, kill: Kill) -> None:
        self._postgres.kill()
        time.sleep(kill.away_seconds)
        self._postgres.start()

    def _kill_backend(self, kill: Kill) -> None:
        served = [process for process in self._postgres.backends() if "postgres: postgres " in process.cmdline()[0]]
        served[int(kill.away_seconds * len(served))].kill()
        # The server then ends all of its connections, and recovers by itself.
        psutil.wait_procs(served, timeout=START_SECONDS)

    def _count(self) -> None:
        for batch in self._batches:
            self.outcome.count_batch(self._engine, batch, self._archive, self._expected)
            self.outcome.findings += [finding.name for finding in check_batch(self._engine, batch)]


class RecoveryWatch:
    """Times the kill of a chunk's holder to the next claim of that chunk.

    Args:
        url: The ledger.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_ledger(url)
        self._waiting: dict[int, tuple[int, float]] = {}
        self._seconds: list[float] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def expect(self, worker: str) -> None:
        """Note what a worker held that was killed a moment ago: nobody can have claimed it since."""
        killed = time.monotonic()
        held = insist(lambda: self._ask("state = 'running' AND worker = :worker", worker=worker))
        with self._lock:
            self._waiting |= {chunk: (attempt, killed) for chunk, attempt, _ in held}

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self._see()
            except TRANSIENT_ERRORS as error:
                if not is_transient(error):
                    raise

    def _see(self) -> None:
        with self._lock:
            waiting = dict(self._waiting)
        if not waiting:
            return
        for chunk, attempt, state in self._ask("id IN :chunks", chunks=list(waiting)):
            before, killed = waiting[chunk]
            if attempt > before:
                self._seconds.append(time.monotonic() - killed)
            # Done in the same attempt: its worker had committed before it died.
            if attempt > before or state == "done":
                with self._lock:
                    self._waiting.pop(chunk, None)

    def _ask(self, condition: str, **values: str | Collection[int]) -> list[tuple[int, int, str]]:
        query = text(f"SELECT id, attempt, state FROM chunk WHERE {condition}")  # noqa: S608 - constants of this class
        lists: list[BindParameter[Any]] = [
            bindparam(name, expanding=True) for name, value in values.items() if not isinstance(value, str)
        ]
        with self._engine.connect() as connection:
            rows = connection.execute(query.bindparams(*lists), values)
            return [(row.id, row.attempt, row.state) for row in rows]

    def stop(self) -> list[float]:
        """End, and return the seconds; idempotent."""
        self._stop.set()
        self._thread.join()
        self._engine.dispose()
        return self._seconds


def insist(ask: Callable[[], T]) -> T:
    """Ask a database that may just be recovering."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return ask()
        except TRANSIENT_ERRORS as error:
            if not is_transient(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def draw_archive(folder: Path, count: int) -> dict[str, str]:
    """Draw an archive of small images, some copies and some broken files among them.

    Args:
        folder: Where to.
        count: How many files.

    Returns:
        The outcome that each file's name must get.
    """
    folder.mkdir(parents=True)
    expected: dict[str, str] = {}
    for number in range(count):
        name, kind = f"{number:06d}.png", number % 100
        if kind < BROKEN:
            (folder / name).write_bytes(b"no image %d" % number)
            expected[name] = "rejected"
        else:
            shown = number + COPIES if kind < BROKEN + COPIES else number
            (folder / name).write_bytes(_draw(shown))
            expected[name] = _outcome(shown)
    return expected


def _outcome(number: int) -> str:
    return "referred" if number % 10 == 0 else "done"


def _draw(number: int) -> bytes:
    # The light classifier refers what is brighter than nine tenths.
    pixels = np.full((16, 16, 3), 250 if _outcome(number) == "referred" else 100, np.uint8)
    # Every file has other bytes: one pixel carries its number.
    pixels[0, 0] = (number % 256, number // 256 % 256, number // 65536)
    return encode_image(pixels, "PNG")


def _row(name: str) -> ItemRow:
    return ItemRow(path=name, size=500, age=50.0, sex="male", localization="back")


def run_campaign(folder: Path, *, seed: int, kills: int, images: int, pace: str = "short") -> Outcome:
    """Run one campaign in an empty folder.

    Args:
        folder: Where archive, schedule and logs lie.
        seed: Seed of the schedule.
        kills: How many.
        images: Files of the archive.
        pace: "short" leases of 3 s, or "production" settings.

    Returns:
        What became of it.
    """
    schedule = draw_schedule(seed, kills, pace)
    (folder / "schedule.json").write_text(json.dumps([asdict(kill) for kill in schedule], indent=1), encoding="utf-8")
    campaign = Campaign(folder, images=images, pace=pace)
    try:
        return campaign.run(schedule)
    finally:
        campaign.close()


def main() -> int:
    """Run a campaign from the command line; exits with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pace", choices=sorted(PACE), default="short")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lesion-screen-faults-"))
    again = f"make faults KILLS={asked.kills} SEED={asked.seed} PACE={asked.pace}"
    try:
        outcome = run_campaign(folder, seed=asked.seed, kills=asked.kills, images=asked.images, pace=asked.pace)
    except BaseException:
        sys.stderr.write(f"The campaign broke off. Again: {again}; schedule and logs are in {folder}\n")
        raise
    print(f"seed {asked.seed}, {asked.pace} leases: {outcome.line()}")  # noqa: T201 - what the command is for
    if outcome.passed:
        shutil.rmtree(folder)
        return 0
    sys.stderr.write(f"Bars missed. Again: {again}; schedule and logs are in {folder}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
