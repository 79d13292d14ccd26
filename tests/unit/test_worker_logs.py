"""Log lines hold what is on the list and nothing else."""

from __future__ import annotations

import ast
import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker.logs import ALLOWED_KEYS, JsonFormatter, set_up_logs

ROOT = Path(__file__).parents[2]
METHODS = {"debug", "info", "warning", "error", "exception", "critical"}


@pytest.fixture(autouse=True)
def _own_logging() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.readouterr().err.splitlines()]


def test_a_key_that_is_not_on_the_list_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs()

    structlog.get_logger().info("chunk left", chunk=3, path="canary.jpg", patient="canary")

    (line,) = lines(capsys)
    assert line.keys() == {"event", "level", "timestamp", "chunk"}


def test_an_exception_is_named_by_type_and_place_and_never_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs()

    try:
        int("canary")
    except ValueError:
        structlog.get_logger().exception("screening failed")
        logging.getLogger("celery").exception("Task %s raised: %s", "canary", "canary")

    for line in lines(capsys):
        assert line["error"] == "ValueError"
        assert "test_an_exception_is_named" in line["frames"][-1]
        assert "canary" not in json.dumps(line)


def test_an_exception_that_nobody_caught_is_not_quoted_either(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs()

    # If one ends a thread, and one the process
    thread = threading.Thread(target=int, args=("canary",))
    thread.start()
    thread.join()
    try:
        int("canary")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)

    # Then each left its type and its place
    found = lines(capsys)
    assert [line["error"] for line in found] == ["ValueError", "ValueError"]
    assert all(line["frames"] for line in found)
    assert "canary" not in json.dumps(found)


@pytest.mark.parametrize(
    ("name", "event"),
    [("celery.worker", "Received %s"), ("kombu.connection", "Received %s"), ("PIL", "a library logged something")],
)
def test_of_a_librarys_message_only_a_known_template_is_kept(name: str, event: str) -> None:
    record = logging.LogRecord(name, logging.WARNING, __file__, 1, "Received %s", ("canary",), None)

    line = json.loads(JsonFormatter().format(record))

    assert line["event"] == event
    assert line["logger"] == name
    assert "canary" not in json.dumps(line)


def calls_to_the_log() -> list[tuple[str, ast.Call]]:
    return [
        (f"{path.name}:{node.lineno}", node)
        for path in sorted((ROOT / "worker").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "_log"
    ]


def test_our_own_events_are_constant_and_their_keys_are_on_the_list() -> None:
    calls = calls_to_the_log()

    assert len(calls) > 10
    for place, call in calls:
        assert [type(argument) for argument in call.args] == [ast.Constant], place
        assert {keyword.arg for keyword in call.keywords} <= ALLOWED_KEYS, place


def test_frames_are_left_out_where_nothing_was_raised() -> None:
    assert sys.exc_info() == (None, None, None)
    record = logging.LogRecord("celery", logging.ERROR, __file__, 1, "odd", (), None)

    assert "frames" not in json.loads(JsonFormatter().format(record))
