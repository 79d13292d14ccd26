"""Keeps what TensorFlow says about itself while it starts off a person's terminal and out of a worker's log."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import IO, Final, cast

#: TensorFlow's own setting: 2 leaves errors, of which a missing GPU is one, and 3 what ends the program.
_LEVEL: Final = "TF_CPP_MIN_LOG_LEVEL"
_ERRORS: Final = 2
_FATAL: Final = 3
#: What TensorFlow 2.21 writes before it has read that setting (tensorflow/tensorflow, issue 100442).
_CHATTER: Final = (
    "^(I[0-9]{4} |WARNING: All log messages before absl::InitializeLog|To enable the following instructions)"
)
_PATIENCE_SECONDS: Final = 5


def hush_tensorflow() -> None:
    """Have TensorFlow, whoever imports it and whenever, write to standard error why it ends and nothing else.

    Where `TF_CPP_MIN_LOG_LEVEL` asks for more, it writes that: for errors 2, for all 0.
    """
    level = os.environ.setdefault(_LEVEL, str(_FATAL))
    wanted = level.isdigit() and int(level) >= _ERRORS
    if wanted and "tensorflow" not in sys.modules and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds TensorFlow, and has its import filtered."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find it where Python does; of all else it knows nothing."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name == "tensorflow" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_filtered(module: ModuleType) -> None:
                with _filtered():
                    execute(module)

            spec.loader.exec_module = execute_filtered  # type: ignore[method-assign] # of this one loader
        return spec


@contextmanager
def _filtered() -> Iterator[None]:
    """Send what is written to standard error, by C++ as well, through a filter.

    The filter is another process, so that the last words of an import that aborts come through.
    """
    started = _start_sieve()
    if started is None:
        yield
        return
    sieve, terminal = started
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        # Its end is that of the last process that writes to it: another thread may have started one meanwhile.
        with suppress(subprocess.TimeoutExpired):
            sieve.wait(_PATIENCE_SECONDS)


def _start_sieve() -> tuple[subprocess.Popen[bytes], int] | None:
    """Put the filter in the place of standard error.

    Returns:
        It, and a descriptor of standard error itself; None where there is no such thing, or nothing to filter with.
    """
    try:
        terminal = os.dup(2)
    except OSError:
        return None
    grep = shutil.which("grep") or "grep"
    options = ["--line-buffered", "--text", "--invert-match", "--extended-regexp"]
    try:
        sieve = subprocess.Popen([grep, *options, _CHATTER], stdin=subprocess.PIPE, stdout=terminal)
    except OSError:
        # There is no grep, or no process to be had: TensorFlow's chatter is better than no TensorFlow.
        os.close(terminal)
        return None
    with cast("IO[bytes]", sieve.stdin) as writing:
        os.dup2(writing.fileno(), 2)
    return sieve, terminal
