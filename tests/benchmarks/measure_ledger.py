"""Measures what queue and ledger can take, with a model that takes no time: load, ring, claim and record, export.

Usage: measure_ledger.py [--items 1000 10000 100000] [--processes 4] [--chunk-items 256] [--plot FILE.png]

Starts a PostgreSQL and a Redis of its own; SQLite goes first. Everything shares this machine's cores, so a server on a
machine of its own takes more. Prints one JSON line a database and size, images a second; the plot shows how time and
memory grow with the archive.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import Scored, claim_next, record_results
from db.feed import ring_chunks
from db.health import check_batch
from db.results import ResultRow
from db.session import open_ledger, upgrade_schema
from producer.export import export_csv
from tests.archive import MODEL
from tests.benchmarks.drawing import draw_growth
from tests.servers import PostgresServer, RedisServer
from worker.contract import CONTRACT_VERSION, ClaimCheck
from worker.doorbell import Doorbell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


def item(number: int) -> ItemRow:
    """Describe an image as a large archive has it."""
    return ItemRow(
        path=f"images/part_{number // 5000:04d}/ISIC_{number:07d}.jpg",
        size=300_000,
        mtime_ns=1,
        image_id=f"ISIC_{number:07d}",
        lesion_id=f"HAM_{number:07d}",
        patient_ref=f"P{number:07d}",
        age=40.0,
        sex="female",
        localization="lower extremity",
    )


def load(engine: Engine, items: int, chunk_items: int) -> tuple[int, float]:
    """Load a batch as the producer does; returns it and the items a second."""
    begun = time.perf_counter()
    batch = start_batch(engine, name="benchmark", source="/archive", model_digest=MODEL)
    for first in range(0, items, chunk_items):
        add_chunk(engine, batch, [item(number) for number in range(first, min(first + chunk_items, items))])
    finish_loading(engine, batch, uuid.uuid4().hex)
    return batch, items / (time.perf_counter() - begun)


def ring(engine: Engine, broker_url: str) -> float:
    """Ring every chunk once, as the feeder does; returns the images a second."""
    begun, images = time.perf_counter(), 0
    with Doorbell(broker_url) as doorbell:
        while rung := ring_chunks(engine, limit=64, quiet_seconds=3600):
            for chunk in rung:
                check = ClaimCheck(
                    version=CONTRACT_VERSION,
                    batch=chunk.batch_id,
                    chunk=chunk.chunk_id,
                    items=chunk.items,
                    model=chunk.model_digest,
                )
                doorbell.ring(check)
                images += chunk.items
    return images / (time.perf_counter() - begun)


def score(image_id: int) -> Scored:
    """Say something about an image, at once."""
    digest = hashlib.sha256(str(image_id).encode()).hexdigest()
    result = ResultRow(
        input_digest=digest,
        model_digest=MODEL,
        probabilities=(0.02, 0.03, 0.1, 0.05, 0.1, 0.6, 0.1),
        diagnosis="nv",
        confidence=0.6,
        malignant_score=0.15,
        distance=1.0,
        referred=False,
        engine="none",
    )
    return Scored(item_id=image_id, image_digest=digest, input_digest=digest, result=result)


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker did."""

    images: int
    #: By the clock that all processes of a machine share.
    begun: float
    ended: float
    #: Spent in claims.
    claiming: float


def work(url: str, batch: int, name: str) -> Share:
    """Claim and record chunks as a worker does, the images left out."""
    engine, images, claiming = open_ledger(url), 0, 0.0
    begun = asked = time.monotonic()
    while (claim := claim_next(engine, batch, worker=name, lease_seconds=30)) is not None:
        claiming += time.monotonic() - asked
        outcomes = [score(one.item_id) for one in claim.items]
        record_results(engine, claim.chunk_id, claim.attempt, model_digest=MODEL, outcomes=outcomes)
        images += len(outcomes)
        asked = time.monotonic()
    engine.dispose()
    return Share(images, begun, asked, claiming)


def work_together(url: str, batch: int, processes: int) -> tuple[int, float, float]:
    """Let so many processes share a batch; returns the images, how many a second, and how many if they only claimed."""
    context = multiprocessing.get_context("spawn")
    # What a process takes to start is no worker's time: all wait for the last one.
    started = context.Barrier(processes)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=started.wait) as pool:
        done = list(pool.map(work, [url] * processes, [batch] * processes, [f"w{one}" for one in range(processes)]))
    images = sum(one.images for one in done)
    seconds = max(one.ended for one in done) - min(one.begun for one in done)
    return images, images / seconds, images * processes / sum(one.claiming for one in done)


def measure(url: str, broker_url: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure one database from loading to the last verdict, and check that nothing was lost."""
    engine = open_ledger(url)
    upgrade_schema(engine)
    batch, loaded = load(engine, given.items, given.chunk_items)
    rung = ring(engine, broker_url)
    images, recorded, claimed = work_together(url, batch, given.processes)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        export_csv(engine, batch, Path(folder) / "results.csv", lambda _row: None)
    exported = images / (time.perf_counter() - begun)
    findings = check_batch(engine, batch)
    assert images == given.items
    assert not findings, findings
    figures = {
        "database": engine.dialect.name,
        "items": given.items,
        "processes": given.processes,
        "loaded_a_second": round(loaded),
        "rung_a_second": round(rung),
        "claimed_a_second": round(claimed),
        "recorded_a_second": round(recorded),
        "exported_a_second": round(exported),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "worker_memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    engine.dispose()
    return figures


def ledgers() -> Iterator[str]:
    """Yield an empty SQLite ledger, then an empty PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder) / 'ledger.sqlite'}"
    server = PostgresServer.prepare()
    try:
        server.start()
        with server.database() as name:
            yield server.url(name)
    finally:
        server.remove()


def main() -> None:
    """Measure both databases on one Redis."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[100_000])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--chunk-items", type=int, default=256)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    found = []
    broker = RedisServer.prepare()
    try:
        broker.start()
        for items in given.items:
            for url in ledgers():
                found.append(_measure_alone(url, broker.url, argparse.Namespace(**{**vars(given), "items": items})))
                sys.stdout.write(json.dumps(found[-1]) + "\n")
                sys.stdout.flush()
    finally:
        broker.remove()
    if given.plot is not None:
        draw_growth(given.plot, found)


def _measure_alone(url: str, broker_url: str, given: argparse.Namespace) -> dict[str, Any]:
    # In a process of its own, whose peak of memory is that of this size alone.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, url, broker_url, given).result()


if __name__ == "__main__":
    main()
