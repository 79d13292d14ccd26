"""Runs one process of the one-machine stack and ends it with its parent, whatever becomes of either.

Started as `python -I guard.py GRACE LOCK -- COMMAND …` with a pipe as standard input that only the parent holds:
when the parent writes `t`, closes the pipe or is killed, the command gets SIGTERM and after GRACE seconds its whole
process group gets SIGKILL; `k` means at once. LOCK names a file that is held while the command runs, or is `-`.
Standard library only: it stays small, and starts before anything is installed around it.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1

#: Seconds between two looks at a lock that another stack's process still holds.
_LOCK_SECONDS = 0.1


class _Pipe:
    """What the parent says: nothing, "end" or "end at once"."""

    def __init__(self) -> None:
        self._open = True
        self.ending = False
        self.at_once = False
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)

    def wait(self, seconds: float | None) -> None:
        """Wait for the parent, a signal, or so many seconds."""
        listen = [self._wake, sys.stdin.fileno()] if self._open else [self._wake]
        ready = select.select(listen, [], [], seconds)[0]
        if self._wake in ready:
            os.read(self._wake, 4096)
        if sys.stdin.fileno() in ready:
            said = os.read(sys.stdin.fileno(), 16)
            self._open = bool(said)
            self.ending = True
            self.at_once = self.at_once or b"k" in said

    def end(self) -> None:
        """Do as if the parent had said so."""
        self.ending = True


def _take_lock(path: str, pipe: _Pipe) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not pipe.ending:
        try:
            # Held until this process ends, and its child ends before it.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pipe.wait(_LOCK_SECONDS)
        else:
            return


def _prepare_child() -> None:
    # Should the guard itself be killed, the command goes with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _run(command: list[str], grace: float, pipe: _Pipe) -> int:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_prepare_child,  # noqa: PLW1509 - this process has no threads
    )
    deadline: float | None = None
    while child.poll() is None:
        if pipe.at_once:
            _kill_group(child.pid)
        elif pipe.ending and deadline is None:
            child.terminate()
            deadline = time.monotonic() + grace
        elif deadline is not None and time.monotonic() > deadline:
            _kill_group(child.pid)
        # SIGCHLD wakes this up; the second is for a signal that came a moment too early.
        pipe.wait(1 if deadline is None else 0.1)
    # A command that was killed leaves its own children behind.
    _kill_group(child.pid)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def main(arguments: list[str]) -> int:
    """Run the command until it ends or the parent does.

    Args:
        arguments: GRACE, LOCK, `--`, COMMAND.

    Returns:
        The command's exit code; 128 and the signal's number where it was killed.
    """
    grace, lock, _dashes, *command = arguments
    pipe = _Pipe()
    for number in (signal.SIGINT, signal.SIGHUP):
        # Ctrl-C is the parent's to answer.
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: pipe.end())
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    if lock != "-":
        _take_lock(lock, pipe)
    if pipe.ending:
        return 0
    return _run(command, float(grace), pipe)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
