"""`lesion-screen up` and `down`: every service of one machine, as an administrator starts and stops them."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from base64 import b64encode
from typing import TYPE_CHECKING

import psutil
import pytest

from model.synthetic import synthesize_archive
from tests.servers import await_that, find_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.acceptance.conftest import Screen


@pytest.fixture
def served(screen: Screen) -> Iterator[Screen]:
    """The command, and nothing that is left of it."""
    screen.environment["FLOWER_PORT"] = str(find_port())
    try:
        yield screen
    finally:
        screen("down")


def processes_of(home: Path) -> list[psutil.Process]:
    """Everything that runs on a home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LESION_SCREEN_HOME") == str(home) and process.pid != os.getpid():
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def ask_flower(port: str, login: str | None) -> int:
    """Ask for Flower's list of workers, and return the status."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/workers")
    if login is not None:
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own address
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_services_are_started_screen_and_are_stopped(served: Screen, tmp_path: Path) -> None:
    # Given services that were started, twice
    assert "Nothing is up" in served("down").stderr
    started = served("up")
    assert "Up: 1 screening, 1 training worker, feeder, Redis, Flower, no beat" in started.stderr
    assert "up already" in served("up", code=2).stderr

    # If an archive is submitted, then they screen it
    synthesize_archive(tmp_path / "archive", images=24, broken=2, seed=3)
    served("submit", tmp_path / "archive")
    await_that(lambda: json.loads(served("status", "--json").stdout)["open"] == 0, 120)

    # And Flower shows it to whoever has the login, and to nobody else
    login = (served.home / "flower_basic_auth").read_text(encoding="ascii")
    port = served.environment["FLOWER_PORT"]
    assert (served.home / "flower_basic_auth").stat().st_mode & 0o777 == 0o600
    assert login not in started.stderr
    assert [ask_flower(port, one) for one in (login, "operator:wrong", None)] == [200, 401, 401]

    # And if they are stopped, nothing is left running
    assert "Nothing is lost" in served("down").stderr
    await_that(lambda: processes_of(served.home) == [])


def test_a_port_that_somebody_else_has_is_said_before_anything_starts(served: Screen) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(served.environment["FLOWER_PORT"])))
        taken.listen()

        assert "set FLOWER_PORT" in served("up", code=2).stderr

    assert processes_of(served.home) == []
