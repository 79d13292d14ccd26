"""Metrics: Flower's and the ledger's on one page, `/metrics`, in the text format of Prometheus."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from flower.views import BaseHandler
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from tornado.ioloop import IOLoop
from tornado.web import authenticated

from db.devices import list_devices
from db.gauges import Gauges, read_gauges
from db.session import TRANSIENT_ERRORS
from worker.contract import RENDERING_QUEUE, SCREENING_QUEUE, TRAINING_QUEUE
from worker.doorbell import Doorbell
from worker.errors import BrokerUnavailable

_QUANTILES: Final = (0.5, 0.95, 1.0)


class LedgerCollector(Collector):
    """Reads the ledger and the queues whenever somebody asks; nothing that it tells speaks of a patient.

    Args:
        engine: The ledger.
        broker_url: URL of the Redis server.
    """

    def __init__(self, engine: Engine, broker_url: str) -> None:
        self._engine = engine
        self._broker_url = broker_url

    def describe(self) -> Iterable[Metric]:
        """Name nothing: registering must not ask a ledger that may be away."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read everything.

        Yields:
            Metrics; of a ledger or a Redis that does not answer, only that.
        """
        yield from self._ledger()
        yield from self._queues()

    def _ledger(self) -> Iterable[Metric]:
        found: list[Metric] = []
        with suppress(*TRANSIENT_ERRORS):
            found = [*_metrics_of(read_gauges(self._engine)), *self._devices()]
        return [_single("lesion_screen_ledger_up", "Whether the ledger answers", bool(found)), *found]

    def _devices(self) -> Iterable[Metric]:
        named = GaugeMetricFamily(
            "lesion_screen_worker_device", "1 for each worker heard of lately", labels=["worker", "device"]
        )
        used = GaugeMetricFamily("lesion_screen_gpu_memory_bytes", "GPU memory that a worker uses", labels=["worker"])
        for row in list_devices(self._engine):
            named.add_metric([row.worker, row.kind], 1)
            if row.memory_bytes is not None:
                used.add_metric([row.worker], row.memory_bytes)
        return [named, used]

    def _queues(self) -> Iterable[Metric]:
        depths: dict[str, int] = {}
        with suppress(BrokerUnavailable), Doorbell(self._broker_url) as doorbell:
            depths = {
                queue: doorbell.queue_depth(queue) for queue in (SCREENING_QUEUE, RENDERING_QUEUE, TRAINING_QUEUE)
            }
        return [
            _single("lesion_screen_redis_up", "Whether Redis answers", bool(depths)),
            _counts("lesion_screen_queue_messages", "Messages that wait in Redis", "queue", depths),
        ]


def _metrics_of(gauges: Gauges) -> Iterable[Metric]:
    scored = gauges.items["done"] + gauges.items["referred"]
    referral = gauges.items["referred"] / scored if scored else 0.0
    yield _counts("lesion_screen_images", "Images in the ledger by outcome", "outcome", gauges.items)
    yield _counts("lesion_screen_chunks", "Chunks of open batches by state", "state", gauges.chunks)
    yield _counts("lesion_screen_batches", "Batches by state", "state", gauges.batches)
    yield _counts("lesion_screen_training_runs", "Training runs by state", "state", gauges.runs)
    yield _single("lesion_screen_images_per_second", "Images with an outcome, last 5 minutes", gauges.images_per_second)
    yield _single("lesion_screen_referral_ratio", "Share of the scored images that is referred", referral)
    yield CounterMetricFamily(
        "lesion_screen_lease_expiries", "Leases that ran out and were taken over", value=gauges.expiries
    )
    yield _single(
        "lesion_screen_expired_chunks", "Chunks of open batches whose lease ran out and nobody has yet", gauges.expired
    )
    yield _single("lesion_screen_working_workers", "Workers that hold a live lease", gauges.working)
    yield _single("lesion_screen_feeder_up", "Whether a feeder feeds", gauges.feeding)
    latency = GaugeMetricFamily(
        "lesion_screen_chunk_latency_seconds",
        "From a chunk's message to its last outcome, of those that ended in the last 5 minutes",
        labels=["quantile"],
    )
    for quantile in _QUANTILES if gauges.latencies else ():
        latency.add_metric([str(quantile)], _quantile(gauges.latencies, quantile))
    yield latency
    model = InfoMetricFamily("lesion_screen_model", "The active model")
    if gauges.model is not None:
        model.add_metric([], {"digest": gauges.model})
    yield model


def _counts(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _single(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _quantile(ascending: Sequence[float], quantile: float) -> float:
    return ascending[min(len(ascending) - 1, int(quantile * len(ascending)))]


class GuardedMetrics(BaseHandler):
    """`/metrics` behind the password as every other page; Flower's own is open to whoever comes by."""

    @authenticated
    async def get(self) -> None:
        """Answer a scrape; in a thread, so that a slow ledger holds no other page up."""
        self.application.purge_offline_worker_metrics()
        content = await IOLoop.current().run_in_executor(None, generate_latest)
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.write(content)


def serve_metrics(engine: Engine, broker_url: str) -> None:
    """Put the ledger's metrics on Flower's page, and the page behind the password; before Flower starts.

    Args:
        engine: The ledger.
        broker_url: URL of the Redis server.
    """
    from flower.urls import handlers

    # The first that fits is taken.
    handlers.insert(0, (r"/metrics", GuardedMetrics))
    REGISTRY.register(LedgerCollector(engine, broker_url))
