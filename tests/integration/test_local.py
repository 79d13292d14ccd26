"""The one-machine stack beside other ledgers, and after its owner was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from celery import Celery

from producer.children import ChildPlan
from producer.errors import UsageProblem
from producer.local import LocalStack
from tests.servers import await_that

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.servers import RedisServer

OWNER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from producer.local import LocalStack\n"
    "with LocalStack(Path(sys.argv[1]), workers=0):\n"
    "    time.sleep(600)\n"
)


def _environment(home: Path, db_url: str | None = None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))}
    return kept | {"LESION_SCREEN_HOME": str(home)} | ({"DB_URL": db_url} if db_url else {})


def test_a_run_on_another_ledger_does_not_wait_for_a_stack_that_will_never_feed_it(tmp_path: Path) -> None:
    # Given a stack on a home's own ledger
    home = tmp_path / "home"
    with LocalStack(home, workers=0, environment=_environment(home)) as first:
        assert not first.joined

        # If another run in that home works on another ledger, then it is told so
        other = _environment(home, f"sqlite:///{tmp_path / 'other.sqlite'}")
        with pytest.raises(UsageProblem, match="another ledger"), LocalStack(home, workers=0, environment=other):
            pass

        # If it names the same ledger in other words, then it joins
        same = _environment(home, f"sqlite:///{home / 'ledger.sqlite'}")
        with LocalStack(home, workers=0, environment=same) as second:
            assert second.joined
            second.keep_running()

        # If the stack it joined has not written its address yet, then it asks again later
        address = (home / "stack.json").read_text()
        (home / "stack.json").unlink()
        with LocalStack(home, workers=0, environment=other) as third:
            third.keep_running()
            (home / "stack.json").write_text(address)
            with pytest.raises(UsageProblem, match="another ledger"):
                third.keep_running()


def test_one_database_is_one_ledger_whoever_logs_in(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with LocalStack(home, workers=0, environment=_environment(home, "postgresql://u:SECRET@127.0.0.1:1/x")):
        assert "SECRET" not in (home / "stack.json").read_text()

        # If the same database is named with another driver, user and password, then its stack is joined
        same = _environment(home, "postgresql+psycopg://v:w@127.0.0.1:1/x")
        with LocalStack(home, workers=0, environment=same) as second:
            assert second.joined


def test_workers_of_two_homes_have_nodes_of_their_own_on_one_broker(
    tmp_path: Path, redis_server: RedisServer, sqlite_ledger: Engine
) -> None:
    # Given workers on somebody's broker, in another process than ours
    ledger = sqlite_ledger.url.render_as_string()
    ours, theirs = (_environment(tmp_path / name, ledger) for name in ("ours", "theirs"))
    code = OWNER.replace("workers=0", "workers=1, broker_url=sys.argv[2]")
    other = subprocess.Popen([sys.executable, "-c", code, ours["LESION_SCREEN_HOME"], redis_server.url], env=ours)
    try:
        # If workers are run in another home, then the broker's nodes have two names
        with LocalStack(tmp_path / "theirs", workers=1, broker_url=redis_server.url, environment=theirs):
            nodes: set[str] = set()
            until = time.monotonic() + 120
            while len(nodes) < 2 and time.monotonic() < until:
                answers = Celery(broker=redis_server.url).control.ping(timeout=2)
                nodes |= {node for answer in answers for node in answer}
        assert len(nodes) == 2
    finally:
        other.terminate()
        other.wait(60)


def _programs(owner: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(owner.pid).children(recursive=True)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        # It ended between the two questions.
        return True


def test_a_stack_goes_with_an_owner_that_is_killed(sqlite_ledger: Engine, tmp_path: Path) -> None:
    # Given a stack in a process of its own: Redis and feeder, each under its guard
    home = Path(str(sqlite_ledger.url.database)).parent
    command = [sys.executable, "-c", OWNER, str(home)]
    with subprocess.Popen(command, env=_environment(home), cwd=tmp_path, stdout=subprocess.DEVNULL) as owner:
        try:
            await_that(lambda: len(_programs(owner)) >= 4)
            tree = _programs(owner)
        finally:
            # If it is killed without a chance to clean up
            owner.kill()

    # Then its Redis and its feeder go too, and the home is free for the next one
    await_that(lambda: all(_is_gone(one) for one in tree))
    with LocalStack(home, workers=0, environment=_environment(home)) as following:
        assert not following.joined


def test_a_part_that_others_need_not_is_given_up_and_they_go_on(
    sqlite_ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a stack with a part that never stays up, such as Flower on a port that is taken
    monkeypatch.setattr("producer.children._FIRST_PAUSE_SECONDS", 0.0)
    home = Path(str(sqlite_ledger.url.database)).parent
    starts = tmp_path / "starts"
    program = f"open({str(starts)!r}, 'a').write('x')"
    plan = ChildPlan(name="odd", command=(sys.executable, "-c", program), grace=1.0, essential=False)

    with LocalStack(home, workers=0, more=[plan], environment=_environment(home)) as stack:
        # If the stack is looked after for a while
        def given_up() -> bool:
            stack.keep_running()
            return stack.restarts == 0 and starts.exists() and len(starts.read_text(encoding="utf-8")) > 1

        await_that(given_up)

        # Then that part is left alone, and the feeder is as it was
        tried = starts.read_text(encoding="utf-8")
        assert len(tried) == 6
        stack.keep_running()
        assert stack.restarts == 0
    assert starts.read_text(encoding="utf-8") == tried
