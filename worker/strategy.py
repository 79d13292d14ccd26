"""How a worker takes a message: one that cannot be unpacked is refused, and costs no worker its life."""

from collections.abc import Callable
from typing import Any, Final

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default

#: What unpacking raises where a header or the body is not what it should be. Not among them is what a lost connection
#: raises, which Celery mends.
_MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def strict(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Make the handler of a task's messages.

    Celery's own refuses some malformed messages and lets others end the worker; unacknowledged, such a message comes
    back and ends the next one.

    Args:
        task: The task.
        app: The Celery application.
        consumer: What listens to the queue.
        options: Whatever else Celery gives its own.

    Returns:
        Celery's handler, which refuses every malformed message.
    """
    handle = default(task, app, consumer, **options)

    def handle_strictly(message: Any, body: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return handle(message, body, *arguments, **options)
        except _MALFORMED:
            # Celery logs it, which is why nothing is said here, and drops it.
            raise InvalidTaskError("The message cannot be unpacked.") from None

    return handle_strictly
