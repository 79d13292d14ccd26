"""The one-machine stack: it comes up, stays up, is shared and goes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis

from producer.broker import PrivateRedis, find_server
from producer.children import Child, ChildPlan
from producer.errors import ServiceProblem
from producer.guard import __file__ as guard_file
from producer.local import LocalStack, child_environment, is_stack_running
from tests.servers import await_that, processes_of
from tests.stack import LIGHT

if TYPE_CHECKING:
    from sqlalchemy import Engine

STUBBORN = (
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "if os.fork() == 0: time.sleep(600)\n"
    "open(sys.argv[1], 'w').write('up')\n"
    "time.sleep(600)\n"
)


def _tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(_is_alive(process) for process in processes)


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _guarded(tmp_path: Path, grace: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", guard_file, grace, "-", "--", sys.executable, "-c", STUBBORN, str(tmp_path / "up")]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE)
    await_that((tmp_path / "up").exists)
    return guard


@pytest.mark.parametrize("how", ["closed", "told", "at once", "terminated", "killed"])
def test_a_guarded_process_and_its_children_go_with_their_parent(tmp_path: Path, how: str) -> None:
    # Given a process that ignores SIGTERM and has a child of its own
    guard = _guarded(tmp_path, "60" if how == "at once" else "0.2")
    assert guard.stdin is not None
    tree, orphans = _tree(guard), list[psutil.Process]()
    assert len(tree) == 2

    # If its parent ends, asks it to end, or the guard itself is ended
    if how == "closed":
        guard.stdin.close()
    elif how == "terminated":
        guard.terminate()
    elif how == "killed":
        guard.kill()
        # The grandchild of a guard that was killed is nobody's; the process itself dies with it
        tree, orphans = tree[:1], tree[1:]
    else:
        os.write(guard.stdin.fileno(), b"t" if how == "told" else b"k")

    # Then nothing is left
    await_that(lambda: _gone(tree), 20)
    guard.wait(20)
    guard.stdin.close()
    for process in orphans:
        process.kill()


def test_the_exit_code_of_a_command_is_passed_on(tmp_path: Path) -> None:
    lock = str(tmp_path / "lock")
    command = [sys.executable, "-I", guard_file, "1", lock, "--", sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as guard:
        await_that(lambda: guard.poll() is not None)
        assert guard.returncode == 7


def _child(tmp_path: Path, program: str) -> Child:
    plan = ChildPlan(name="c", command=(sys.executable, "-c", program), grace=1)
    return Child(plan, tmp_path, os.environ)


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    child = _child(tmp_path, "import time; print('begun', flush=True); time.sleep(600)")
    child.start()
    log = tmp_path / "logs/c.log"
    await_that(lambda: "begun" in log.read_text())

    # If it is killed
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if process.info["ppid"] == os.getpid() and "begun" in " ".join(process.info["cmdline"] or []):
            process.children()[0].kill()

    # Then it is started again, and ended when it is told to
    await_that(lambda: not child.running)

    def started_again() -> bool:
        child.keep_running()
        return child.starts == 2

    await_that(started_again)
    child.ask_to_end()
    child.await_end()
    assert not child.running


def test_a_child_that_never_stays_up_is_given_up_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.children._FIRST_PAUSE_SECONDS", 0.0)
    child = _child(tmp_path, "raise SystemExit(1)")
    child.start()

    def keep_on() -> bool:
        child.keep_running()
        return False

    with pytest.raises(ServiceProblem, match=r"logs/c\.log"):
        await_that(keep_on)


def test_the_private_redis_keeps_its_password_to_itself(tmp_path: Path) -> None:
    # Given a private Redis in a folder with a difficult name
    server = PrivateRedis(tmp_path / 'ho"me 1', os.environ)
    server.start()
    try:
        # Then it answers to its password only, persists, and evicts nothing
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
        password = server.url.split(":")[2].split("@")[0]
        with redis.Redis.from_url(server.url.replace(password, "x")) as other, pytest.raises(redis.RedisError):
            other.ping()
        # And no list of processes shows it
        shown = [_command_line(process) for process in psutil.Process().children(recursive=True)]
        assert any(str(find_server()) in line for line in shown)
        assert not any(password in line for line in shown)
        assert (tmp_path / 'ho"me 1/redis/redis.conf').stat().st_mode & 0o077 == 0
    finally:
        server.child.end_at_once()
        server.child.await_end()


def test_a_damaged_append_only_file_does_not_keep_the_stack_down(tmp_path: Path) -> None:
    # Given what no server can read
    damaged = tmp_path / "redis/appendonlydir"
    damaged.mkdir(parents=True)
    (damaged / "appendonly.aof.manifest").write_text("nonsense\n")

    server = PrivateRedis(tmp_path, os.environ)
    try:
        server.start()
    finally:
        server.child.end_at_once()
        server.child.await_end()


@pytest.fixture
def home(sqlite_ledger: Engine, own_home: Path) -> Path:
    """A home whose ledger is there, and a stack in it that is as light as can be."""
    assert sqlite_ledger
    return own_home


def test_a_home_has_one_stack_and_a_second_one_joins_and_takes_over(home: Path) -> None:
    assert not is_stack_running(home)
    with LocalStack(home, workers=0) as first:
        # Given a running stack
        assert not first.joined
        assert is_stack_running(home)
        address = json.loads((home / "stack.json").read_text())
        assert address["pid"] == os.getpid()
        assert (home / "stack.json").stat().st_mode & 0o077 == 0

        with LocalStack(home, workers=0) as second:
            # Then a second one starts nothing
            assert second.joined
            second.keep_running()
            assert second.joined

            # If the first ends, the second takes over with a Redis of its own
            first.stop()
            second.keep_running()
            assert not second.joined
            with redis.Redis.from_url(json.loads((home / "stack.json").read_text())["broker_url"]) as client:
                assert client.ping()
    assert not is_stack_running(home)
    assert not (home / "stack.json").exists()
    assert not processes_of(home)


def test_a_redis_that_is_killed_comes_back_at_the_same_address(home: Path) -> None:
    with LocalStack(home, workers=0) as stack:
        url = json.loads((home / "stack.json").read_text())["broker_url"]
        for process in processes_of(home):
            if "server" in process.name():
                process.kill()

        def answers() -> bool:
            stack.keep_running()
            try:
                with redis.Redis.from_url(url) as client:
                    return stack.restarts > 0 and bool(client.ping())
            except redis.RedisError:
                return False

        await_that(answers)


def test_an_error_inside_the_stack_stops_it(home: Path) -> None:
    with pytest.raises(ZeroDivisionError), LocalStack(home, workers=0):
        raise ZeroDivisionError

    await_that(lambda: not processes_of(home))


def test_a_child_sees_absolute_paths_and_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    made = child_environment(tmp_path / "h", {"LESION_SCREEN_STORE": "st", "DB_URL": "sqlite:///l.sqlite", "X": "1"})

    assert made["LESION_SCREEN_HOME"] == str(tmp_path / "h")
    assert made["LESION_SCREEN_STORE"] == str(tmp_path / "st")
    assert made["DB_URL"] == f"sqlite:///{tmp_path}/l.sqlite"
    assert (made["X"], made["REMAP_SIGTERM"], made["PYTHONSAFEPATH"]) == ("1", "SIGQUIT", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    at_home = child_environment(tmp_path, {"LESION_SCREEN_STORE": "~/st", "DB_URL": "sqlite:///~/l.sqlite"})
    assert at_home["LESION_SCREEN_STORE"] == str(tmp_path / "user" / "st")
    assert at_home["DB_URL"] == f"sqlite:///{tmp_path}/user/l.sqlite"
    remote = child_environment(tmp_path, {"LESION_SCREEN_STORE": "s3://bucket/x", "DB_URL": "postgresql://h/d"})
    assert (remote["LESION_SCREEN_STORE"], remote["DB_URL"]) == ("s3://bucket/x", "postgresql://h/d")


def test_a_run_screens_an_archive_with_a_worker_of_its_own_which_may_die(tmp_path: Path) -> None:
    import numpy as np

    from model.images import encode_image

    # Given an archive of small images, and a classifier that needs no TensorFlow
    root = tmp_path / "archive"
    root.mkdir()
    for brightness in range(12):
        (root / f"{brightness}.png").write_bytes(encode_image(np.full((16, 16, 3), brightness * 20, np.uint8), "PNG"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))} | {
        "LESION_SCREEN_HOME": str(tmp_path / "home"),
        "WORKER_CLASSIFIER": "light_classifier:LightClassifier",
        "WORKER_LEASE_SECONDS": "3",
        "WORKER_HEARTBEAT_SECONDS": "0.5",
        "WORKER_QUIET_SECONDS": "2",
        "WORKER_BATCH_SIZE": "1",
        "LIGHT_SECONDS": "0.3",
        "PRODUCER_CHUNK_ITEMS": "4",
        "PYTHONPATH": str(LIGHT),
    }
    command = [sys.executable, "-c", "from producer.cli import main; main()", "run", str(root), "--json"]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def worker() -> list[psutil.Process]:
        return [process for process in processes_of(tmp_path / "home") if "screener-1@" in _command_line(process)]

    # If the worker is killed as soon as it is there
    await_that(lambda: any(process.children() for process in worker()), 60)
    for process in worker():
        if "guard.py" not in _command_line(process):
            process.send_signal(signal.SIGKILL)

    # Then another one finishes, the counts add up, and nothing is left running
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 0, stderr
    report = json.loads(stdout)
    assert (report["found"], report["open"], report["done"] + report["referred"]) == (12, 0, 12)
    assert stderr == ""
    await_that(lambda: not processes_of(tmp_path / "home"))
