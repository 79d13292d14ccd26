"""Flower: no page without a password, and no port beyond this machine unless somebody says so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.monitoring import LOGIN, flower_of

if TYPE_CHECKING:
    from tests.stack import Stack

PAGES = (
    "/",
    "/workers",
    "/tasks",
    "/tasks/datatable",
    "/broker",
    "/metrics",
    "/api/workers",
    "/api/tasks",
    "/api/queues/length",
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"FLOWER_BASIC_AUTH": ""},
        {"FLOWER_BASIC_AUTH": "operator"},
        {"FLOWER_BASIC_AUTH": "operator:"},
        {"FLOWER_BASIC_AUTH": ":correct horse battery"},
        {"FLOWER_BASIC_AUTH": "operator:short"},
        {"FLOWER_BASIC_AUTH": f"{LOGIN},second:short"},
    ],
)
def test_without_a_proper_password_it_does_not_start(stack: Stack, settings: dict[str, str]) -> None:
    assert stack.start_flower(**settings).wait(30) == 2
    assert "FLOWER_BASIC_AUTH must be USER:PASSWORD" in stack.log("flower")
    assert "short" not in stack.log("flower")


@pytest.mark.parametrize("name", ["FLOWER_UNAUTHENTICATED_API", "FLOWER_AUTH_PROVIDER", "FLOWER_CONF"])
def test_an_option_that_could_open_it_is_refused(stack: Stack, name: str) -> None:
    assert stack.start_flower(FLOWER_BASIC_AUTH=LOGIN, **{name: "1"}).wait(30) == 2
    assert f"{name}: no such setting" in stack.log("flower")


def test_it_listens_on_the_loopback_alone_and_asks_for_the_password(stack: Stack) -> None:
    with flower_of(stack) as flower:
        # Given where it listens
        listening = [
            one.laddr for one in psutil.Process(stack.running[-1].pid).net_connections() if one.status == "LISTEN"
        ]
        assert [tuple(address) for address in listening] == [("127.0.0.1", flower.port)]

        # Then no page is shown without the password, or with another one
        for page in PAGES:
            assert flower.get(page, login=None)[0] == 401, page
            assert flower.get(page, login="operator:wrong horse battery")[0] == 401, page
        assert flower.get("/tasks")[0] == 200

        # And the password is not in the list of processes
        arguments = " ".join(psutil.Process(stack.running[-1].pid).cmdline())
        assert "horse" not in arguments
        assert stack.environment["WORKER_BROKER_URL"] not in arguments


def test_whoever_has_the_password_watches_and_queues_nothing(stack: Stack) -> None:
    with flower_of(stack) as flower:
        for order in ("task/send-task/lesion_screen.screen_chunk", "worker/shutdown/w1@test"):
            assert flower.get(f"/api/{order}", content=b'{"args": []}')[0] == 403, order


def test_code_in_the_current_folder_is_not_run(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a flowerconfig.py, which Flower runs by default, in the folder that it is started from
    trap = stack.folder / "flowerconfig.py"
    trap.write_text(f"open({str(stack.folder / 'sprung')!r}, 'w')\n", encoding="utf-8")
    monkeypatch.setattr("tests.stack.ROOT", stack.folder)

    with flower_of(stack, PYTHONPATH=os.pathsep.join([stack.environment["PYTHONPATH"]])):
        assert not (stack.folder / "sprung").exists()
