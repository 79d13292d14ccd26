"""Patience with the database: what passes by itself is tried again, with growing pauses, for a limited time."""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from db.session import TRANSIENT_ERRORS, is_transient

T = TypeVar("T")

#: The first pause, seconds; each further one is twice as long.
_FIRST_PAUSE: Final = 0.2
#: No pause is longer. Ten seconds keep a worker quick enough to renew its lease once the database is back.
LONGEST_PAUSE: Final = 10.0
#: How often a pause looks whether it should end early, seconds.
_LOOK: Final = 0.1

_log = structlog.get_logger()


def pause(attempt: int, *, longest: float = LONGEST_PAUSE) -> float:
    """Say how long to wait before trying again.

    Args:
        attempt: Failures so far, from 1.
        longest: Upper bound in seconds.

    Returns:
        Between half and the whole of an exponentially growing pause: jitter keeps many workers from knocking together.
    """
    whole = min(longest, _FIRST_PAUSE * 2 ** min(attempt - 1, 30))
    return whole * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret


def wait(seconds: float, until: Callable[[], bool]) -> bool:
    """Wait, but not longer than necessary.

    Args:
        seconds: How long.
        until: Asked several times a second; True ends the wait.

    Returns:
        Whether the wait ended early.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if until():
            return True
        time.sleep(min(_LOOK, left))
    return until()


def insist(call: Callable[[], T], *, seconds: float, until: Callable[[], bool]) -> T:
    """Call the database, again and again while it is away.

    Args:
        call: Something that is harmless to repeat.
        seconds: How long to go on after the first failure.
        until: Give up early once this is True.

    Returns:
        What the call returns.

    Raises:
        Exception: The call's own error, where it is not transient or patience has ended.
    """
    attempt, deadline = 0, time.monotonic() + seconds
    while True:
        try:
            return call()
        except TRANSIENT_ERRORS as error:
            attempt += 1
            delay = pause(attempt)
            if not is_transient(error) or time.monotonic() + delay > deadline:
                raise
            _log.warning("database is away", attempt=attempt, error=type(error).__name__, seconds=round(delay, 2))
            if wait(delay, until):
                raise
