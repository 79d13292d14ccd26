"""A Flower to look at."""

import base64
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError

from tests.servers import await_that, find_port
from tests.stack import Stack

LOGIN = "operator:correct horse battery"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flower:
    """A running Flower."""

    port: int

    def get(self, path: str, *, login: str | None = LOGIN, content: bytes | None = None) -> tuple[int, bytes]:
        """Ask for a page, or post something; returns the status and what came."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content)
        if login is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - the address is fixed above
                return int(answer.status), answer.read()
        except HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    def read(self, path: str) -> bytes:
        """Get a page that must be there."""
        status, content = self.get(path)
        assert status == 200, f"{path}: {status}"
        return content

    def tasks(self) -> dict[str, Any]:
        """List what it knows of tasks."""
        found: dict[str, Any] = json.loads(self.read("/api/tasks"))
        return found

    def is_up(self) -> bool:
        """Say whether it answers."""
        try:
            return self.get("/healthcheck")[0] == 200
        except URLError:
            return False


@contextmanager
def flower_of(stack: Stack, **settings: str) -> Iterator[Flower]:
    """Run Flower on a stack, with a password."""
    port = find_port()
    process = stack.start_flower(FLOWER_BASIC_AUTH=LOGIN, FLOWER_PORT=str(port), **settings)
    flower = Flower(port=port)
    await_that(lambda: process.poll() is not None or flower.is_up())
    assert process.poll() is None, stack.log("flower")
    yield flower
    process.terminate()
    process.wait(20)
