"""Progress bars of a training run, for the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from model.training import Progress


class TrainingBars:
    """One bar for each part of a run, and a line for each epoch; on standard error, so that output stays clean."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._bars.stop()

    def show(self, part: str, progress: Progress) -> None:
        """Draw where a part of the run stands; see `Workshop.report`."""
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(part, total=progress.epochs * progress.steps)
        # Before its first step nobody knows how many a part will have.
        total = progress.epochs * progress.steps
        self._bars.update(self._tasks[part], total=total, completed=progress.epoch * progress.steps + progress.step)
        if progress.row is not None:
            row = progress.row
            self._bars.console.print(f"{part}, epoch {row['epoch']}: loss {row['loss']:.4f}, {row['seconds']:.0f} s")
