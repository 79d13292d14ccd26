"""The kill campaign: seeded SIGKILLs of workers, children, feeder, Redis and PostgreSQL while an archive is screened.

`make faults` prints one line: kills, lost, doubled, recovery. What is lost or doubled is counted from the files on disk
and the rows of the ledger, not from the program's own counters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from sqlalchemy import Engine, exc, text

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.health import check_batch
from db.session import open_ledger
from model.images import encode_image
from tests.conftest import migrate
from tests.servers import PostgresServer, RedisServer, await_that
from tests.stack import SHORT_TIMES, Stack

WORKERS: Final = ("w1", "w2", "w3")
CHUNK_ITEMS: Final = 20
#: How often each is killed, of ten: Redis comes back once with what it had on disk and once with nothing.
KINDS: Final = ("worker",) * 3 + ("child",) * 3 + ("feeder", "redis kept", "redis wiped", "postgres")
#: Seconds between kills, with short leases and with production's.
PACE: Final = {"short": (0.2, 1.5), "production": (5.0, 15.0)}
#: After the last kill everything must be finished within so many seconds.
FINISH_SECONDS: Final = 240
#: The bar, seconds.
RECOVERY_BAR: Final = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill of the schedule."""

    after_seconds: float
    kind: str
    #: Which worker.
    worker: str
    #: How long it stays away.
    away_seconds: float


def draw_schedule(seed: int, kills: int, pace: str) -> list[Kill]:
    """Draw the kills; the same arguments draw the same schedule."""
    generator = random.Random(seed)
    return [
        Kill(
            after_seconds=generator.uniform(*PACE[pace]),
            kind=generator.choice(KINDS),
            worker=generator.choice(WORKERS),
            away_seconds=generator.uniform(0, 1),
        )
        for _ in range(kills)
    ]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a campaign."""

    kills: Counter[str] = field(default_factory=Counter)
    #: Files of finished batches without a verdict of their own, quarantined ones left out.
    lost: int = 0
    #: Files with two items, or inputs with two results.
    doubled: int = 0
    quarantined: int = 0
    batches: int = 0
    unfinished: int = 0
    findings: int = 0
    recoveries: list[float] = field(default_factory=list)

    def line(self) -> str:
        """Say it in a line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        recovery = "none measured"
        if self.recoveries:
            half, most = np.quantile(self.recoveries, [0.5, 0.99])
            recovery = f"p50 {half:.1f} s, p99 {most:.1f} s of {len(self.recoveries)}"
        return (
            f"kills {self.kills.total()} ({kinds}); lost {self.lost}; doubled {self.doubled}; "
            f"quarantined {self.quarantined}; batches {self.batches}, unfinished {self.unfinished}; recovery {recovery}"
        )

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, unfinished or slow."""
        slow = bool(self.recoveries) and float(np.quantile(self.recoveries, 0.99)) > RECOVERY_BAR
        return not (self.lost or self.doubled or self.unfinished or self.findings or slow)


class Campaign:
    """Servers, workers, an archive, and the hand that kills.

    Args:
        folder: Where everything lies; must be empty.
        images: Images of the archive.
        settings: The workers' and the feeder's.
    """

    def __init__(self, folder: Path, *, images: int, settings: dict[str, str]) -> None:
        self.outcome = Outcome()
        self._archive = folder / "archive"
        self._rows = _draw_images(self._archive, images)
        self._models: list[str] = []
        self._postgres, self._redis = PostgresServer.prepare(), RedisServer.prepare()
        self._postgres.start()
        self._redis.start()
        self._closing = contextlib.ExitStack()
        name = self._closing.enter_context(self._postgres.database())
        url = self._postgres.url(name)
        migrate(url)
        self._engine: Engine = open_ledger(url)
        self._stack = Stack.prepare(folder / "logs", ledger_url=url, redis_url=self._redis.url, settings=settings)
        self._feeder = self._stack.start_feeder()
        self._workers = {name: self._stack.start_worker(name) for name in WORKERS}
        self._watch = _RecoveryWatch(url)

    def close(self) -> None:
        """End everything."""
        self._watch.stop()
        self._stack.stop()
        self._engine.dispose()
        with contextlib.suppress(exc.SQLAlchemyError, OSError):
            self._closing.close()
        self._redis.remove()
        self._postgres.remove()

    def run(self, schedule: Sequence[Kill]) -> Outcome:
        """Kill by the schedule while batch after batch is screened, then wait for the last and count."""
        self._submit()
        for kill in schedule:
            time.sleep(kill.after_seconds)
            if not self._open_chunks():
                self._submit()
            self._kill(kill)
        with contextlib.suppress(BaseException):
            await_that(lambda: not self._open_chunks(), FINISH_SECONDS)
        self.outcome.recoveries = self._watch.stop()
        self._count()
        return self.outcome

    def _submit(self) -> None:
        # Another model each time: nothing is known of these images then.
        model = secrets.token_hex(32)
        batch = start_batch(self._engine, name="campaign", source=str(self._archive), model_digest=model)
        for start in range(0, len(self._rows), CHUNK_ITEMS):
            add_chunk(self._engine, batch, self._rows[start : start + CHUNK_ITEMS])
        finish_loading(self._engine, batch, secrets.token_hex(32))
        self._models.append(model)

    def _open_chunks(self) -> int:
        return self._number("SELECT count(*) FROM chunk WHERE state <> 'done'")

    def _number(self, query: str, **values: object) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(text(query), values).scalar_one())

    def _kill(self, kill: Kill) -> None:
        self.outcome.kills[kill.kind] += 1
        worker = self._workers[kill.worker]
        if kill.kind in {"worker", "child"}:
            self._watch.expect(f"{kill.worker}@test")
        if kill.kind == "child":
            for child in _children(worker):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        elif kill.kind == "worker":
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            self._workers[kill.worker] = self._stack.start_worker(kill.worker)
        elif kill.kind == "feeder":
            os.killpg(self._feeder.pid, signal.SIGKILL)
            self._feeder.wait()
            self._feeder = self._stack.start_feeder()
        elif kill.kind == "postgres":
            self._postgres.kill()
            time.sleep(kill.away_seconds)
            self._postgres.start()
        else:
            self._redis.kill()
            if kill.kind == "redis wiped":
                self._redis.forget()
            time.sleep(kill.away_seconds)
            self._redis.start()
        # A supervisor's work: a worker that ended by itself is started again.
        for name, process in self._workers.items():
            if process.poll() is not None:
                self._workers[name] = self._stack.start_worker(name)

    def _count(self) -> None:
        files = {path.name for path in self._archive.iterdir()}
        with self._engine.connect() as connection:
            batches = connection.execute(text("SELECT id, model_digest FROM batch ORDER BY id")).all()
            for batch in batches:
                items = connection.execute(
                    text("SELECT path, state FROM item WHERE batch_id = :batch"), {"batch": batch.id}
                ).all()
                self._count_items(files, [(item.path, item.state) for item in items])
                results = connection.execute(
                    text("SELECT input_digest FROM result WHERE model_digest = :model"), {"model": batch.model_digest}
                ).scalars()
                self.outcome.doubled += sum(count - 1 for count in Counter(results).values())
        self.outcome.batches = len(batches)
        self.outcome.unfinished = self._open_chunks()
        self.outcome.findings = sum(len(check_batch(self._engine, batch.id)) for batch in batches)

    def _count_items(self, files: set[str], items: list[tuple[str, str]]) -> None:
        paths = Counter(path for path, _ in items)
        states = dict(items)
        self.outcome.doubled += sum(count - 1 for count in paths.values())
        self.outcome.quarantined += sum(state == "quarantined" for state in states.values())
        # Every image is sound, so a rejected one is lost as well.
        self.outcome.lost += sum(states.get(name) not in {"done", "referred", "quarantined"} for name in files)


class _RecoveryWatch:
    """Times a kill to the next claim of the same chunk."""

    def __init__(self, url: str) -> None:
        self._engine = open_ledger(url)
        self._waiting: dict[int, tuple[int, float]] = {}
        self._seconds: list[float] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def expect(self, worker: str) -> None:
        """Note what a worker holds, a moment before it is killed."""
        with self._engine.connect() as connection:
            held = connection.execute(
                text("SELECT id, attempt FROM chunk WHERE state = 'running' AND worker LIKE :worker"),
                # The ledger names the process as well.
                {"worker": f"{worker}/%"},
            ).all()
        with self._lock:
            self._waiting |= {row.id: (row.attempt, time.monotonic()) for row in held}

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            with self._lock, contextlib.suppress(exc.SQLAlchemyError):
                self._see()

    def _see(self) -> None:
        if not self._waiting:
            return
        with self._engine.connect() as connection:
            rows = connection.execute(text("SELECT id, attempt, state FROM chunk WHERE attempt > 0")).all()
        for row in rows:
            if row.id not in self._waiting:
                continue
            attempt, killed = self._waiting[row.id]
            if row.attempt > attempt:
                self._seconds.append(time.monotonic() - killed)
            if row.attempt > attempt or row.state == "done":
                # Done in the same attempt: the worker had committed before it died.
                del self._waiting[row.id]

    def stop(self) -> list[float]:
        """End, and return the seconds; idempotent."""
        self._stop.set()
        self._thread.join()
        self._engine.dispose()
        return self._seconds


def _draw_images(folder: Path, count: int) -> list[ItemRow]:
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = np.full((16, 16, 3), number % 256, np.uint8)
        # Every file has other bytes: one pixel carries its number.
        pixels[0, 0] = (number % 256, number // 256 % 256, number // 65536)
        data = encode_image(pixels, "PNG")
        (folder / f"{number:06d}.png").write_bytes(data)
        rows.append(ItemRow(path=f"{number:06d}.png", size=len(data), age=50.0, sex="male", localization="back"))
    return rows


def _children(process: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        yield from psutil.Process(process.pid).children()


def run_campaign(folder: Path, *, seed: int, kills: int, images: int, pace: str = "short") -> Outcome:
    """Run one campaign in an empty folder.

    Args:
        folder: Where archive and logs lie.
        seed: Seed of the schedule.
        kills: How many.
        images: Images of the archive.
        pace: "short" leases of 3 s, or "production" settings.
    """
    # Slow enough that a killed worker mostly holds a chunk.
    settings = {"LIGHT_SECONDS": "0.2" if pace == "short" else "1"}
    schedule = draw_schedule(seed, kills, pace)
    (folder / "schedule.json").write_text(json.dumps([asdict(kill) for kill in schedule], indent=1), encoding="utf-8")
    campaign = Campaign(folder, images=images, settings=settings | (SHORT_TIMES if pace == "short" else {}))
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
    outcome = run_campaign(folder, seed=asked.seed, kills=asked.kills, images=asked.images, pace=asked.pace)
    print(f"seed {asked.seed}, {asked.pace} leases: {outcome.line()}")  # noqa: T201 - what the command is for
    if outcome.passed:
        shutil.rmtree(folder)
        return 0
    again = f"make faults KILLS={asked.kills} SEED={asked.seed} PACE={asked.pace}"
    sys.stderr.write(f"Bars missed. Again: {again}; schedule and logs are in {folder}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
