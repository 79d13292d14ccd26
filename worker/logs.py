"""Logs: JSON lines with an allow-list of keys, so that nothing about a patient can slip in."""

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final

import structlog

#: Keys that may be written, all of them counts, codes, digests and names of our own; any other is dropped.
ALLOWED_KEYS: Final = frozenset(
    {
        "attempt",
        "batch",
        "batch_size",
        "chunk",
        "crashes",
        "depth",
        "device",
        "ending",
        "error",
        "event",
        "frames",
        "gpus",
        "items",
        "level",
        "logger",
        "model",
        "pid",
        "precision",
        "reason",
        "rejected",
        "reused",
        "run",
        "rung",
        "scored",
        "seconds",
        "state",
        "task",
        "timestamp",
        "version",
        "worker",
    }
)

#: Libraries whose messages are templates filled at the time of logging. Their templates are written, and what would
#: fill them (task arguments, addresses, exception texts) is not. Of other libraries only the name is written.
_TEMPLATE_LOGGERS: Final = frozenset({"alembic", "billiard", "celery", "kombu", "redis", "sqlalchemy"})

_LONGEST_TEMPLATE: Final = 200


def frames(trace: TracebackType | None) -> list[str]:
    """Describe where an exception came from: module file, line and function, no values and no source lines."""
    return [
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(trace)
    ]


def name_exception(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace `exc_info` by the exception's type and frames: its text may quote a row or a path."""
    given = entry.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        entry["error"] = type(error).__qualname__
        entry["frames"] = frames(error.__traceback__)
    return entry


def drop_unlisted(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop every key that is not on the list."""
    for key in entry.keys() - ALLOWED_KEYS:
        del entry[key]
    return entry


class JsonFormatter(logging.Formatter):
    """Writes other libraries' log records as the same JSON lines: the message's template, never what fills it."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record.

        Args:
            record: What a library logged.

        Returns:
            One JSON line.
        """
        known = record.name.partition(".")[0] in _TEMPLATE_LOGGERS and isinstance(record.msg, str)
        entry: MutableMapping[str, Any] = {
            "event": record.msg.strip()[:_LONGEST_TEMPLATE] if known else "a library logged something",
            "logger": record.name,
            "level": record.levelname.lower(),
            "timestamp": _utc(record.created),
            "exc_info": record.exc_info,
        }
        return json.dumps(drop_unlisted(None, "", name_exception(None, "", entry)))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


def set_up_logs(level: int = logging.INFO) -> None:
    """Send this process's own logs and its libraries' warnings to standard error as JSON lines; idempotent.

    Args:
        level: The least important level of our own logs that is written.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            name_exception,
            drop_unlisted,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    # Python itself would print the text of an exception that nobody caught.
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda given: _log_uncaught(given.exc_type, given.exc_value, given.exc_traceback)


def _log_uncaught(_kind: type[BaseException], error: BaseException | None, _trace: TracebackType | None) -> None:
    structlog.get_logger().critical("ended by an error that nobody caught", exc_info=error)
