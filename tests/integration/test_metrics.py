"""The one page that a Prometheus scrapes: Flower's metrics and the ledger's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from db.control import cancel_batch, pause_batch
from db.devices import DeviceRow, record_device
from db.gauges import read_gauges
from tests.monitoring import Flower, flower_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.archive import Archive
    from tests.conftest import Scene
    from tests.servers import RedisServer
    from tests.stack import Stack

Samples = dict[tuple[str, ...], float]


def scrape(flower: Flower) -> Samples:
    """Name and label values to value."""
    families = text_string_to_metric_families(flower.read("/metrics").decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


@pytest.mark.parametrize("ledger", ["postgres"], indirect=True)
def test_one_page_has_what_flower_and_the_ledger_know(stack: Stack, archive: Archive) -> None:
    # Given a batch that a worker has screened, one file of it broken, and a message that waits
    rows = [*archive.draw(250, first=5), archive.spoil("broken.png", b"no image")]
    with flower_of(stack) as flower:
        stack.start_worker("w1")
        stack.start_feeder()
        batch = archive.load(rows[:100], rows[100:])
        stack.until(lambda: archive.counts(batch).open == 0)
        counts = archive.counts(batch)

        # If the page is asked for
        told = {("flower_worker_online", "w1@test"), ("lesion_screen_worker_device", "cpu", "w1@test")}
        stack.until(lambda: told <= scrape(flower).keys())
        found = scrape(flower)

    # Then the ledger's counts are there
    assert found["lesion_screen_ledger_up",] == found["lesion_screen_redis_up",] == 1
    assert found["lesion_screen_images", "done"] == counts.done
    assert found["lesion_screen_images", "referred"] == counts.referred > 0
    assert found["lesion_screen_images", "rejected"] == 1
    assert found["lesion_screen_chunks", "done"] == 2
    assert found["lesion_screen_referral_ratio",] == counts.referred / 250
    assert found["lesion_screen_images_per_second",] == pytest.approx(251 / 300)
    assert found["lesion_screen_feeder_up",] == 1
    assert found["lesion_screen_lease_expiries_total",] == 0
    assert found["lesion_screen_queue_messages", "screening"] == 0
    assert (
        0 < found["lesion_screen_chunk_latency_seconds", "0.5"] <= found["lesion_screen_chunk_latency_seconds", "1.0"]
    )
    assert found["lesion_screen_worker_device", "cpu", "w1@test"] == 1
    assert not any(name == "lesion_screen_gpu_memory_bytes" for name, *_ in found)
    # And Flower's
    assert found["flower_worker_online", "w1@test"] == 1


def test_leases_that_ran_out_and_gpu_memory_are_counted(stack: Stack, scene: Scene) -> None:
    # Given a chunk whose worker was killed, one that was taken over, and a worker on a GPU
    _, (first, second) = scene.open(2, 2)
    scene.claim(first)
    scene.expire(first)
    scene.claim(second)
    scene.expire(second)
    scene.claim(second, worker="w2")
    record_device(scene.engine, DeviceRow(worker="w2@test", kind="gpu", memory_bytes=5 << 30, batch_size=64))

    # If the page is asked for
    with flower_of(stack) as flower:
        found = scrape(flower)

    # Then
    assert found["lesion_screen_lease_expiries_total",] == 1
    assert found["lesion_screen_expired_chunks",] == 1
    assert found["lesion_screen_working_workers",] == 1
    assert found["lesion_screen_gpu_memory_bytes", "w2@test"] == 5 << 30
    assert found["lesion_screen_feeder_up",] == 0


def test_what_is_paused_waits_for_nobody(scene: Scene) -> None:
    # Given chunks whose workers were killed, one of a batch that goes on, and one each of those that were ended since
    opened, *ended = [scene.open(1) for _ in range(3)]
    for _, (chunk,) in (opened, *ended):
        scene.claim(chunk)
        scene.expire(chunk)
    pause_batch(scene.engine, ended[0][0], "me")
    cancel_batch(scene.engine, ended[1][0], "me")

    # If the ledger is asked, then only the first is one that somebody has to take
    assert read_gauges(scene.engine).expired == 1


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_ledger_and_a_redis_that_are_away_are_said(stack: Stack, redis_server: RedisServer, tmp_path: Path) -> None:
    # Given a Flower that is up
    with flower_of(stack, DB_URL=f"sqlite:///{tmp_path / 'none' / 'ledger.sqlite'}") as flower:
        # If the ledger is not there, and Redis goes away
        before = scrape(flower)
        redis_server.kill()
        after = scrape(flower)
        # Without it Flower does not end before its threads have given up.
        redis_server.start()

    # Then the page says so, and has the rest
    assert before["lesion_screen_ledger_up",] == 0
    assert before["lesion_screen_redis_up",] == 1
    assert after["lesion_screen_redis_up",] == 0
