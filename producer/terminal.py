"""The terminal: messages on standard error, JSON on standard output, and who sits in front of it."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console


def open_console(*, quiet: bool = False) -> Console:
    """Make the console for people, which obeys NO_COLOR (https://no-color.org).

    Args:
        quiet: Say nothing.

    Returns:
        A console on standard error, which writes no control code where that is no terminal.
    """
    # Not left to FORCE_COLOR and the like: what stands in a log file has to be readable there.
    return Console(stderr=True, quiet=quiet, force_terminal=sys.stderr.isatty())


@contextmanager
def say_doing(console: Console, doing: str) -> Iterator[Callable[[str], None]]:
    """Say what is being done where nothing can be counted: beside a turning sign on a terminal, else a line at once.

    Args:
        console: Where to.
        doing: As in "Starting".

    Yields:
        What to call with each part, as in "redis".
    """
    if not console.is_interactive:
        console.print(f"{doing} …", highlight=False)
        yield lambda part: console.print(f"{doing} … {part}", markup=False, highlight=False)
        return
    with console.status(f"{doing} …") as line:
        yield lambda part: line.update(f"{doing} … {part}")


def print_json(values: Mapping[str, Any]) -> None:
    """Print the answer for programs.

    Args:
        values: Printed as one line on standard output.
    """
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def name_actor() -> str:
    """Name who acts, for the audit trail.

    Returns:
        The login's name, or without a login, in a container say, the user's number.
    """
    return os.environ.get("USER") or f"uid {os.getuid()}"
