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
from typing import Final

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
    grep, terminal = shutil.which("grep"), None
    if grep is not None:
        # There may be no standard error.
        with suppress(OSError):
            terminal = os.dup(2)
    if grep is None or terminal is None:
        yield
        return
    options = ["--line-buffered", "--text", "--invert-match", "--extended-regexp"]
    reading, writing = os.pipe()
    sieve = subprocess.Popen([grep, *options, _CHATTER], stdin=reading, stdout=terminal)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        # Its end is that of the last process that writes to it: another thread may have started one meanwhile.
        with suppress(subprocess.TimeoutExpired):
            sieve.wait(_PATIENCE_SECONDS)
