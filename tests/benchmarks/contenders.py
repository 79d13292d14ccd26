"""What `make bench` lets race: ours from disk to ledger, and three ways that public repositories take."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

import numpy as np
from celery.result import ResultSet
from sqlalchemy import select

from db.models import activate_first
from db.results import iter_report
from db.session import open_ledger, upgrade_schema
from db.tables import Result
from model.artifact import read_manifest
from model.calibration import posterior
from producer.archive import open_archive
from producer.local import LocalStack
from producer.status import batch_status
from producer.submit import ring_open_chunks, submit_archive
from tests.benchmarks.one_image import app, load, prepare, score
from tests.servers import RedisServer, processes_of
from worker.register import register_manifest
from worker.store import ArtifactStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

ROOT: Final = Path(__file__).parents[2]
#: Images of a batch of the contender that has batches.
BATCH: Final = 32
#: Seconds between two looks at the ledger, as `lesion-screen run` has them: a look takes time of the cores.
_LOOK_SECONDS: Final = 0.5

#: File name to the seven probabilities.
Probabilities = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]


def own_environment() -> dict[str, str]:
    """Return the environment without what would lead to somebody's ledger or Redis."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))}


class Contender(Protocol):
    """One way from files to probabilities."""

    name: str
    #: How much of a round's files it gets: a slow one needs fewer for a figure that is as steady.
    share: float

    def __enter__(self) -> Self:
        """Start, and score something once, so that no round pays for a start."""

    def __exit__(self, *_about: object) -> None:
        """Stop."""

    def run(self, files: list[Path]) -> tuple[float, Probabilities]:
        """Score files; returns the seconds it took, and the probabilities."""


class Ours:
    """Everything from the archive to the ledger: producer, Redis, feeder, one worker, SQLite.

    Its processes are stopped while others run: those that only wait take some of the cores too.
    """

    share = 1.0

    def __init__(self, model: Path, home: Path, engine: Literal["auto", "tensorflow"], warm_up: Path) -> None:
        self.name = "lesion-screen" if engine == "auto" else "lesion-screen, TensorFlow alone"
        self._model, self._home, self._warm_up = model, home, warm_up
        self.engine: Literal["auto", "tensorflow"] = engine
        self._stack = LocalStack(home, workers=1, environment={**own_environment(), "WORKER_ENGINE": engine})
        #: What the worker chose, as it stands beside each result.
        self.engine_name = ""

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True)
        self._ledger: Engine = open_ledger(f"sqlite:///{self._home / 'ledger.sqlite'}")
        upgrade_schema(self._ledger)
        manifest = read_manifest(self._model)
        ArtifactStore(folder=self._home / "store", objects=None).install(self._model)
        register_manifest(self._ledger, manifest)
        activate_first(self._ledger, manifest.digest, "bench")
        self._digest = manifest.digest
        self._stack.__enter__()
        self.run(sorted(self._warm_up.iterdir()))
        return self

    def __exit__(self, *_about: object) -> None:
        self._signal(signal.SIGCONT)
        self._stack.stop()
        self._ledger.dispose()

    def run(self, files: list[Path]) -> tuple[float, Probabilities]:
        """Submit the folder that holds nothing but the files, and wait until the last outcome is in the ledger."""
        folder = files[0].parent
        self._signal(signal.SIGCONT)
        begun = time.perf_counter()
        submitted = submit_archive(self._ledger, open_archive(folder), name=folder.name, model_digest=self._digest)
        submitting = time.perf_counter() - begun
        ring_open_chunks(self._ledger, self._stack.address or "")
        while (status := batch_status(self._ledger, submitted.batch)).open:
            self._stack.keep_running()
            time.sleep(_LOOK_SECONDS)
        # By the ledger's clock: this process looks too seldom to know when the last outcome came.
        seconds = submitting + status.seconds
        self._signal(signal.SIGSTOP)
        found = {}
        for row in iter_report(self._ledger, submitted.batch):
            assert row.path is not None
            assert row.probabilities is not None, f"{row.path} is {row.state.value}: {row.reason}"
            found[row.path] = np.asarray(row.probabilities)
        assert len(found) == len(files)
        with self._ledger.connect() as connection:
            self.engine_name = str(connection.scalar(select(Result.engine).limit(1)))
        return seconds, found

    def _signal(self, number: signal.Signals) -> None:
        for process in processes_of(self._home):
            process.send_signal(number)


class Loop:
    """`model.predict` on one image after another."""

    name = "predict loop"
    share = 1 / 32

    def __init__(self, model: Path) -> None:
        self._model = model

    def __enter__(self) -> Self:
        self._network, self._size, self._nobody = load(self._model)
        self._posterior = _posterior_of(self._model)
        self._predict(np.zeros((1, self._size, self._size, 3), np.float32))
        return self

    def __exit__(self, *_about: object) -> None:
        pass

    def _predict(self, pixels: Any) -> Any:
        return self._network.predict([pixels, self._nobody], verbose=0)["logits"][0]

    def run(self, files: list[Path]) -> tuple[float, Probabilities]:
        """Score files one by one."""
        begun = time.perf_counter()
        logits = [self._predict(prepare(path.read_bytes(), self._size)) for path in files]
        seconds = time.perf_counter() - begun
        return seconds, self._posterior(files, np.asarray(logits))


class Dataset(Loop):
    """`tf.data` with parallel decoding, and `model.predict` on batches; our decoder, for the same pixels."""

    name = "tf.data + predict"
    share = 1 / 8

    def run(self, files: list[Path]) -> tuple[float, Probabilities]:
        """Score files in batches."""
        import tensorflow as tf

        size = self._size

        def read(path: Any) -> Any:
            pixels = tf.numpy_function(
                lambda name: prepare(Path(name.decode()).read_bytes(), size)[0], [path], tf.float32
            )
            return tf.ensure_shape(pixels, (size, size, 3))

        begun = time.perf_counter()
        images = tf.data.Dataset.from_tensor_slices([str(path) for path in files])
        images = images.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        images = images.map(lambda pixels: ((pixels, tf.constant(self._nobody[0])),))
        logits = self._network.predict(images.batch(BATCH).prefetch(tf.data.AUTOTUNE), verbose=0)["logits"]
        seconds = time.perf_counter() - begun
        return seconds, self._posterior(files, logits)


class OneImageTasks:
    """A Celery task an image, on as many processes as there are cores, which is Celery's default.

    They are stopped while others run, as ours are.
    """

    name = "Celery, an image a task"
    share = 1 / 32

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder

    def __enter__(self) -> Self:
        self._redis = RedisServer.prepare()
        self._redis.start()
        app.conf.update(broker_url=self._redis.url, result_backend=self._redis.url)
        self._posterior = _posterior_of(self._model)
        environment = {**os.environ, "BENCH_BROKER": self._redis.url, "BENCH_MODEL": str(self._model)}
        with (self._folder / "one_image.log").open("wb") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.benchmarks.one_image", "worker", "--loglevel", "WARNING"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_about: object) -> None:
        self._signal(signal.SIGCONT)
        self._worker.terminate()
        self._worker.wait()
        self._redis.remove()

    def run(self, files: list[Path]) -> tuple[float, Probabilities]:
        """Queue a task a file and wait for the last answer."""
        self._signal(signal.SIGCONT)
        begun = time.perf_counter()
        logits = ResultSet([score.delay(str(path)) for path in files]).join()
        seconds = time.perf_counter() - begun
        self._signal(signal.SIGSTOP)
        return seconds, self._posterior(files, np.asarray(logits))

    def _signal(self, number: int) -> None:
        os.killpg(self._worker.pid, number)


def _posterior_of(model: Path) -> Any:
    manifest = read_manifest(model)
    prior, temperature = np.asarray(manifest.prior), manifest.calibration.temperature

    def name(files: list[Path], logits: Any) -> Probabilities:
        found = posterior(np.asarray(logits, np.float64), prior, temperature)
        return {path.name: row for path, row in zip(files, found, strict=True)}

    return name
