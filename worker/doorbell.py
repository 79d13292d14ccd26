"""The doorbell: publishes claim checks to Redis through a Celery client, without TensorFlow and without the tasks."""

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from worker.contract import (
    CONTRACT_VERSION,
    RENDER_CHUNK,
    RENDERING_QUEUE,
    SCREEN_CHUNK,
    SCREENING_QUEUE,
    TRAIN_MODEL,
    TRAINING_QUEUE,
    ClaimCheck,
    RunCheck,
)
from worker.errors import BrokerUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: A broker that does not answer within so many seconds is away; the caller decides whether to wait.
_ANSWER_SECONDS: Final = 5

_BROKER_ERRORS: Final = (OperationalError, KombuError, RedisError, OSError)


class Doorbell:
    """A client of the broker that rings for chunks and training runs; for one thread.

    Args:
        broker_url: URL of the Redis server; it may hold a password and never appears in an error.
    """

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("lesion_screen_doorbell", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            task_serializer="json",
            accept_content=["json"],
            task_ignore_result=True,
            # The doorbell speaks up at once and lets its caller wait: the ledger has everything anyway.
            task_publish_retry=False,
            broker_connection_timeout=_ANSWER_SECONDS,
            broker_transport_options={
                "socket_timeout": _ANSWER_SECONDS,
                "socket_connect_timeout": _ANSWER_SECONDS,
                "socket_keepalive": True,
                "max_retries": 0,
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ring(self, check: ClaimCheck, *, urgent: bool = False) -> None:
        """Publish one claim check. Ringing twice is harmless: the second claim finds nothing.

        Args:
            check: Which chunk is to be screened.
            urgent: Let it overtake the messages that wait.

        Raises:
            BrokerUnavailable: If Redis does not take it.
        """
        shown = f"batch {check.batch}, chunk {check.chunk}, {check.items} images, model {check.model[:12]}"
        payload = check.model_dump(mode="json")
        try:
            # Flower shows the second, and it is all that a person needs to find the chunk.
            self._app.send_task(SCREEN_CHUNK, (payload,), argsrepr=shown, queue=SCREENING_QUEUE, retry=False)
            if urgent:
                self._move_to_front()
        except _BROKER_ERRORS as error:
            raise _unavailable() from error

    def ring_run(self, run_id: int) -> bool:
        """Ring for a training run, unless a message waits already for the training worker.

        Args:
            run_id: The run.

        Returns:
            Whether it was rung.

        Raises:
            BrokerUnavailable: If Redis does not take it.
        """
        if self.queue_depth(TRAINING_QUEUE):
            return False
        check = RunCheck(version=CONTRACT_VERSION, run=run_id)
        try:
            self._app.send_task(TRAIN_MODEL, args=(check.model_dump(mode="json"),), queue=TRAINING_QUEUE, retry=False)
        except _BROKER_ERRORS as error:
            raise _unavailable() from error
        return True

    def ring_rendering(self, check: ClaimCheck) -> None:
        """Publish that a chunk's images are to be drawn. Ringing twice is harmless: what is drawn is left.

        Args:
            check: Which chunk.

        Raises:
            BrokerUnavailable: If Redis does not take it.
        """
        try:
            self._app.send_task(RENDER_CHUNK, args=(check.model_dump(mode="json"),), queue=RENDERING_QUEUE, retry=False)
        except _BROKER_ERRORS as error:
            raise _unavailable() from error

    def _move_to_front(self) -> None:
        # Kombu publishes on the left of a list and consumes on its right. Should another message have come in between,
        # that one overtakes, and the order is all that differs.
        with self._app.connection_or_acquire() as connection:
            connection.default_channel.client.lmove(SCREENING_QUEUE, SCREENING_QUEUE, "LEFT", "RIGHT")

    def ring_open(
        self,
        engine: "Engine",
        *,
        limit: int,
        quiet_seconds: float = 15,
        expired_only: bool = False,
        least_priority: int | None = None,
    ) -> int:
        """Ring for open chunks that were not rung lately; what a dead worker held overtakes what waits.

        Args:
            engine: The ledger, which notes what is rung.
            limit: Chunks at most.
            quiet_seconds: Chunks rung within so many seconds are left out.
            expired_only: Chunks that no worker has begun are left out.
            least_priority: Batches of a lower priority are left out.

        Returns:
            How many chunks were rung.

        Raises:
            BrokerUnavailable: If Redis goes away meanwhile; what was noted as rung is rung again after its quiet time.
        """
        from db.feed import ring_chunks

        rung = ring_chunks(
            engine,
            limit=limit,
            quiet_seconds=quiet_seconds,
            expired_only=expired_only,
            least_priority=least_priority,
        )
        for chunk in rung:
            self.ring(
                ClaimCheck(
                    version=CONTRACT_VERSION,
                    batch=chunk.batch_id,
                    chunk=chunk.chunk_id,
                    items=chunk.items,
                    model=chunk.model_digest,
                ),
                urgent=chunk.expired,
            )
        return len(rung)

    def queue_depth(self, queue: str = SCREENING_QUEUE) -> int:
        """Count the messages that wait in Redis, those in workers' hands not included.

        Args:
            queue: The queue's name.

        Returns:
            How many wait.

        Raises:
            BrokerUnavailable: If Redis does not answer.
        """
        try:
            with self._app.connection_or_acquire() as connection:
                # Redis keeps a queue as a list of the same name; a list that is not there has length 0.
                return int(connection.default_channel.client.llen(queue))
        except _BROKER_ERRORS as error:
            raise _unavailable() from error

    def ping(self) -> None:
        """Ask whether the broker answers.

        Raises:
            BrokerUnavailable: If it does not.
        """
        try:
            with self._app.connection_or_acquire() as connection:
                connection.default_channel.client.ping()
        except _BROKER_ERRORS as error:
            raise _unavailable() from error

    def close(self) -> None:
        """Close the connections."""
        self._app.close()


def _unavailable() -> BrokerUnavailable:
    return BrokerUnavailable("Redis does not answer, refuses the password or is full; see WORKER_BROKER_URL.")
