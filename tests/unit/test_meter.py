"""The meter on a terminal and off it, by a clock that the test turns."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from producer.meter import LINE_SECONDS, Meter, Pace
from producer.progress import ProgressBar
from producer.status import Status
from producer.terminal import open_console, say_doing


@dataclass(slots=True)
class Clock:
    """Tells the time that it was set to, seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Standard error as a terminal has it."""

    def isatty(self) -> bool:
        return True


@dataclass(slots=True)
class Log:
    """A console whose output goes into a file."""

    file: io.StringIO = field(default_factory=io.StringIO)

    @property
    def console(self) -> Console:
        return Console(file=self.file, force_terminal=False)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def test_off_a_terminal_a_line_is_said_every_some_seconds_and_no_control_code() -> None:
    # Given a log file, and work of two images a second
    log, clock = Log(), Clock()

    # If the meter is told every second for a minute
    with Meter(log.console, "Writing", "images", 240, clock=clock) as meter:
        for second in range(61):
            meter.show(2 * second, outcomes=f"{2 * second} done")
            clock.now += 1

    # Then there is a line every ten seconds, with rate and time left, the last one among them
    assert len(log.lines) == 60 / LINE_SECONDS
    assert log.lines[0] == "Writing: 20 of 240 images, 2.0 images/s, 0:01:50 left, 20 done"
    assert log.lines[-1] == "Writing: 120 of 240 images, 2.0 images/s, 0:01:00 left, 120 done"
    assert "\x1b" not in log.file.getvalue()
    assert "\r" not in log.file.getvalue()


def test_what_is_done_at_once_says_no_line_and_a_long_work_says_its_end() -> None:
    log, clock = Log(), Clock()

    # If short work is shown, then nothing is said: the summary tells
    with Meter(log.console, "Writing", "images", 5, clock=clock) as meter:
        meter.show(5)
    assert log.lines == []

    # If a line was due, then the end is said as well, in whole however narrow the screen is
    with Meter(log.console, "Reading", "files and rows", clock=clock) as meter:
        meter.show(0)
        clock.now += LINE_SECONDS
        meter.show(1000)
        meter.show(1234567, outcomes="x" * 100)
    assert log.lines[0] == "Reading: 1,000 files and rows, 100.0 files and rows/s"
    assert log.lines[1].startswith("Reading: 1,234,567 files and rows")
    assert log.lines[1].endswith("x" * 100)


def test_nothing_is_said_twice_while_nothing_happens() -> None:
    log, clock = Log(), Clock()

    with Meter(log.console, "", "images", 5, clock=clock) as meter:
        for _ in range(10):
            clock.now += LINE_SECONDS
            meter.show(0, outcomes="0 done")

    assert log.lines == ["0 of 5 images, 0 done"]


def test_a_quiet_meter_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Meter(open_console(quiet=True), "", "images", 5, clock=clock) as meter:
        clock.now += LINE_SECONDS
        meter.show(3)

    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a terminal
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    clock = Clock()

    # If a batch's progress is shown
    with Meter(open_console(), "", "images", 8, clock=clock) as meter:
        meter.show(0)
        clock.now += 1
        meter.show(4, outcomes="3 done, 1 [b]referred")
    seen = terminal.getvalue()

    # Then it moves, has colours, and takes no name for markup
    assert "4 of 8 images, 4.0 images/s, 0:00:01 left, 3 done, 1 [b]referred" in seen
    assert "\x1b[?25l" in seen
    assert "\x1b[38;5;" in seen


def test_what_cannot_be_counted_is_said_at_once_and_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given work without a count, off a terminal and on one
    log, terminal = Log(), Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")

    # If its parts are said
    for console in (log.console, open_console()):
        with say_doing(console, "Starting") as say:
            say("[redis]")

    # Then there is a line for each, and on the terminal a sign that turns
    assert log.lines == ["Starting …", "Starting … [redis]"]
    assert "Starting …" in terminal.getvalue()
    assert "\x1b[?25l" in terminal.getvalue()


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR"])
def test_colours_are_left_out_where_they_are_not_wanted(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a terminal with NO_COLOR, or a file and a FORCE_COLOR that is meant for another program
    file = Terminal() if variable == "NO_COLOR" else io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, "1")

    # If something red is said
    open_console().print("[red]unsound[/]")

    # Then it is not red
    assert file.getvalue() == "unsound\n"


def test_a_batch_is_shown_by_its_outcomes() -> None:
    numbers = {"found": 9, "open": 2, "done": 4, "referred": 2, "rejected": 1, "quarantined": 0}
    status = Status(batch=1, model="m", seconds=1.0, images_per_second=1.0, **numbers)
    log = Log()

    with ProgressBar(log.console, 9) as bar:
        bar.show_status(status)
        said = bar.text

    assert said == "7 of 9 images, 4 done, 2 referred, 1 rejected"


def test_the_pace_is_that_of_the_last_minute_and_begins_anew_with_the_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.rate is None

    # If the work is slow for a long time and then fast
    for count, seconds in ((0, 100), (1, 100), (101, 10), (201, 10), (301, 0)):
        pace.note(count)
        clock.now += seconds

    # Then the slow time is forgotten
    assert pace.rate == 10.0

    # If less is done than before, another piece of work has begun
    pace.note(0)
    assert pace.rate is None


def test_what_takes_longer_than_the_window_has_a_pace_too() -> None:
    # Given epochs of two minutes
    log, clock = Log(), Clock()
    with Meter(log.console, "Training", "epochs", 10, clock=clock) as meter:
        for epoch in range(1, 4):
            meter.show(epoch, outcomes="fold-0")
            clock.now += 120

    assert log.lines[-1] == "Training: 3 of 10 epochs, 120 s each, 0:14:00 left, fold-0"
