"""A meter: how far a long piece of work is, as a bar on a terminal and as plain lines anywhere else."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

#: Off a terminal, in a log say, a line at most every so many seconds; work that is done sooner says none.
LINE_SECONDS: Final = 10.0

#: The rate is that of the last so many seconds: outcomes are recorded in gulps, and workers come and go.
_WINDOW_SECONDS: Final = 60.0


class Pace:
    """How fast a count grows, over the last minute.

    Args:
        clock: Tells the time, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: When the count changed, and to what; the first one is where it began.
        self._changes: deque[tuple[float, int]] = deque()

    def note(self, count: int) -> None:
        """Note the present count; one that is smaller than before begins anew.

        Args:
            count: How much is done.
        """
        if self._changes and count == self._changes[-1][1]:
            return
        if self._changes and count < self._changes[-1][1]:
            self._changes.clear()
        now = self._clock()
        self._changes.append((now, count))
        # Two are kept however old they are: an epoch of training takes longer than the window.
        while len(self._changes) > 2 and self._changes[0][0] < now - _WINDOW_SECONDS:  # noqa: PLR2004 - as said
            self._changes.popleft()

    @property
    def rate(self) -> float | None:
        """Counts a second, or None as long as there is none."""
        if not self._changes:
            return None
        (began, first), (ended, last) = self._changes[0], self._changes[-1]
        return (last - first) / (ended - began) if ended > began else None


class Meter:
    """Shows on standard error how far a piece of work is: count, rate, time left and outcomes.

    Args:
        console: Where to; a quiet one shows nothing.
        doing: What is done, as in "Reading the archive"; may be empty.
        unit: What is counted, in the plural.
        total: How many there are; None where nobody knows.
        clock: Tells the time, seconds.

    Attributes:
        text: What is shown, or would be.
    """

    def __init__(
        self,
        console: Console,
        doing: str,
        unit: str,
        total: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        self._bar: Progress | None = None
        if console.is_interactive:
            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(SpinnerColumn(), BarColumn(bar_width=16), text, console=console)
        self._said_at = clock()
        self._said = self.text = ""
        self._has_said = False
        self.begin(doing, unit, total)

    def begin(self, doing: str, unit: str, total: int | None = None) -> None:
        """Begin another piece of work on the same meter.

        Args:
            doing: What is done.
            unit: What is counted, in the plural.
            total: How many there are.
        """
        self._doing, self._unit, self._total = doing, unit, total
        self._pace = Pace(self._clock)
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(doing, total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._has_said and self.text != self._said:
            self._say()

    def show(self, count: int, *, total: int | None = None, outcomes: str = "") -> None:
        """Show how far the work is.

        Args:
            count: How much is done.
            total: How many there are, where that has changed.
            outcomes: What came of them, as in "90 done, 3 referred".
        """
        self._total = self._total if total is None else total
        self._pace.note(count)
        self.text = self._describe(count, outcomes)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._total, completed=count, description=self.text)
        elif self.text != self._said and self._clock() - self._said_at >= LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._has_said, self._said, self._said_at = True, self.text, self._clock()
        self._console.print(self.text, markup=False, highlight=False, soft_wrap=True)

    def _describe(self, count: int, outcomes: str) -> str:
        known = f"{count:,} {self._unit}" if self._total is None else f"{count:,} of {self._total:,} {self._unit}"
        parts = [known, *self._describe_pace(count), *([outcomes] if outcomes else [])]
        return (f"{self._doing}: " if self._doing else "") + ", ".join(parts)

    def _describe_pace(self, count: int) -> list[str]:
        rate = self._pace.rate
        if not rate:
            return []
        pace = f"{rate:,.1f} {self._unit}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s each"  # noqa: PLR2004 - legible
        if self._total is None or count >= self._total:
            return [pace]
        return [pace, f"{_duration((self._total - count) / rate)} left"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
