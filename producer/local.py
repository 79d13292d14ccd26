"""The one-machine stack: a private Redis, the feeder and workers as child processes, stopped whatever happens."""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from db.settings import full_path
from producer.broker import PrivateRedis
from producer.children import Child, ChildPlan
from producer.errors import ServiceProblem, UsageProblem
from worker.contract import RENDERING_QUEUE, SCREENING_QUEUE, TRAINING_QUEUE

#: A worker may take so long after SIGTERM to record what it has and to give its chunk back; its own limit is 30.
_WORKER_GRACE = 40.0
_FEEDER_GRACE = 10.0

#: Held and filled with a process number as long as `lesion-screen serve` runs the stack, and more beside it.
SERVICES_LOCK: Final = "serve.pid"

_LOCK = "stack.lock"
_ADDRESS = "stack.json"


class LocalStack:
    """Feeder and workers of this machine, with a private Redis unless a broker is given.

    One stack runs in a home at a time. A second one joins: it starts nothing, its batch is fed by the first, and when
    that ends it takes over.

    Args:
        home: Folder of the one-machine state.
        workers: Worker processes to run.
        training: Run a training worker as well.
        more: Further processes, which find Redis as the workers do.
        broker_url: A real Redis server, or None.
        environment: Environment of the children; the process's own where it is not given.
    """

    def __init__(
        self,
        home: Path,
        *,
        workers: int,
        training: bool = False,
        more: Sequence[ChildPlan] = (),
        broker_url: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._home = home
        queues = f"{SCREENING_QUEUE},{RENDERING_QUEUE}"
        # Others of this host may work on a broker that is not ours, and no two of its nodes may have one name.
        mark = "" if broker_url is None else f"-{os.getpid()}"
        self._plans = [_worker_plan(f"screener-{one + 1}", mark, queues, gpu=one) for one in range(workers)]
        self._plans += [*[_worker_plan("trainer", mark, TRAINING_QUEUE, gpu=workers)] * training, *more]
        self._broker_url = broker_url
        self._environment = child_environment(home, environment if environment is not None else os.environ)
        self._lock: int | None = None
        self._redis: PrivateRedis | None = None
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        try:
            if self._broker_url is not None:
                self._start_children(self._broker_url)
            elif self._take_lock():
                self._start_own()
            else:
                self._check_same_ledger()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def joined(self) -> bool:
        """Whether another process runs the stack of this home."""
        return self._broker_url is None and self._lock is None

    @property
    def address(self) -> str | None:
        """URL of the Redis that this stack or the joined one works on; None while that one is only just starting."""
        if self._broker_url is not None or self._redis is not None:
            return self._broker_url or (self._redis.url if self._redis else None)
        try:
            told = json.loads((self._home / _ADDRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(told["broker_url"])

    @property
    def restarts(self) -> int:
        """How often a child had to be started again."""
        return sum(child.starts - 1 for child in self._all())

    def keep_running(self) -> None:
        """Start children that died again, and take over a stack whose owner has ended. Call it every second or so.

        Raises:
            ServiceProblem: If a child does not stay up that the others need.
            UsageProblem: If the stack that was joined serves another ledger.
        """
        if self.joined:
            if self._take_lock():
                self._start_own()
            else:
                self._check_same_ledger()
            return
        for child in self._all():
            try:
                child.keep_running()
            except ServiceProblem:
                if child.plan.essential:
                    raise
                self._children.remove(child)

    def note_progress(self) -> None:
        """Say that work is getting done, so that earlier deaths of children do not count any more."""
        for child in self._all():
            child.forgive()

    def stop(self) -> None:
        """Stop every child and wait for it; an interrupt while waiting kills them at once. Idempotent."""
        try:
            self._end_gently()
        except BaseException:
            for child in self._all():
                child.end_at_once()
            for child in self._all():
                child.await_end()
            raise
        finally:
            self._children.clear()
            self._redis = None
            self._drop_lock()

    def _end_gently(self) -> None:
        for child in self._children:
            child.ask_to_end()
        for child in self._children:
            child.await_end()
        # Last: a worker says goodbye through it.
        if self._redis is not None:
            self._redis.child.ask_to_end()
            self._redis.child.await_end()

    def _all(self) -> list[Child]:
        return [*self._children, *([self._redis.child] if self._redis is not None else [])]

    def _start_own(self) -> None:
        self._redis = PrivateRedis(self._home, self._environment)
        self._redis.start()
        self._write_address(self._redis.url)
        self._start_children(self._redis.url)

    def _start_children(self, broker_url: str) -> None:
        environment = self._environment | {"WORKER_BROKER_URL": broker_url}
        plans = [ChildPlan(name="feeder", command=(sys.executable, "-m", "worker.feeder"), grace=_FEEDER_GRACE)]
        for plan in [*plans, *self._plans]:
            child = Child(plan, self._home, environment)
            self._children.append(child)
            child.start()

    def _take_lock(self) -> bool:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._lock = file
        return True

    def _drop_lock(self) -> None:
        if self._lock is not None:
            (self._home / _ADDRESS).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _check_same_ledger(self) -> None:
        # Its feeder looks into its own ledger only: whoever joined with another one would wait for ever.
        try:
            served = json.loads((self._home / _ADDRESS).read_text(encoding="utf-8")).get("ledger")
        except (OSError, ValueError):
            # It is only just starting, or ending; the next look will tell.
            return
        if served != _identify_ledger(self._home, self._environment):
            raise UsageProblem(
                "Another run in this LESION_SCREEN_HOME works on another ledger (DB_URL). The batch is safe in its "
                "own: run again once the other has ended, or give this one a home of its own."
            )

    def _write_address(self, url: str) -> None:
        # For the owner's own tools, Flower among them; it holds the password.
        path = self._home / _ADDRESS
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as address:
            json.dump(
                {
                    "pid": os.getpid(),
                    "broker_url": url,
                    "ledger": _identify_ledger(self._home, self._environment),
                },
                address,
            )


def _identify_ledger(home: Path, environment: Mapping[str, str]) -> str:
    # User and password may differ between two runs on one database, and are nobody's to read.
    from sqlalchemy.engine import make_url

    url = make_url(environment.get("DB_URL") or f"sqlite:///{home.absolute() / 'ledger.sqlite'}")
    place = (url.get_backend_name().removesuffix("ql"), url.host, url.port, url.database, sorted(url.query.items()))
    return hashlib.sha256(repr(place).encode()).hexdigest()


def _worker_plan(name: str, mark: str, queues: str, *, gpu: int) -> ChildPlan:
    command = (
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        *("-Q", queues, "-c", "1", "--pool", "prefork"),
        *("--hostname", f"{name}{mark}@%h", "--loglevel", "WARNING"),
    )
    settings = {"WORKER_GPU_INDEX": str(gpu)}
    return ChildPlan(name=name, command=command, grace=_WORKER_GRACE, settings=settings)


def is_stack_running(home: Path, *, services: bool = False) -> bool:
    """Say whether some process runs the stack of a home.

    Args:
        home: Folder of the one-machine state.
        services: Whether only `lesion-screen up` and `serve` count, which run more than a batch needs.

    Returns:
        True where its lock is held.

    Raises:
        ServiceProblem: If the folder cannot be looked into.
    """
    try:
        with (home / (SERVICES_LOCK if services else _LOCK)).open("rb") as file:
            # Shared, so that two that look at once do not see each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise ServiceProblem("The folder LESION_SCREEN_HOME cannot be used; check who owns it.") from error
    return False


def child_environment(home: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a child, which runs in another folder than we do.

    Args:
        home: Folder of the one-machine state.
        environment: Ours.

    Returns:
        The same with absolute paths and the child's own settings.
    """
    made = dict(environment) | {"LESION_SCREEN_HOME": str(home)}
    if store := environment.get("LESION_SCREEN_STORE"):
        made["LESION_SCREEN_STORE"] = store if "://" in store else str(full_path(store))
    url = environment.get("DB_URL", "")
    if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        made["DB_URL"] = f"sqlite:///{full_path(url.removeprefix('sqlite:///'))}"
    # `python -m` looks into the current folder first, which may be an archive and hold a worker.py.
    made["PYTHONSAFEPATH"] = "1"
    # Celery: SIGTERM ends softly, the chunk at hand is recorded and given back.
    made["REMAP_SIGTERM"] = "SIGQUIT"
    made.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return made
