"""The plots of the benchmarks."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Okabe & Ito 2008, told apart with any colour vision.
OURS, OTHERS, BOUND = "#0072B2", "#999999", "#E69F00"
_DPI: Final = 110
#: Rates of `measure_ledger.measure` and what they are rates of.
_STEPS: Final = {
    "loaded_a_second": "load",
    "rung_a_second": "ring",
    "recorded_a_second": "claim and record",
    "exported_a_second": "export",
}
#: Peaks of memory and whose.
_MEMORIES: Final = {"peak_memory_mb": "load, ring and export", "worker_memory_mb": "a worker"}
_STEP_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def draw_growth(file: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Draw seconds of each step, and memory, against the archive's size, a panel for each database; dots say measured.

    Args:
        file: PNG to write.
        found: What `measure_ledger.measure` returned, one for each database and size.
    """
    databases = list(dict.fromkeys(one["database"] for one in found))
    figure = Figure(figsize=(10, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(databases) + 1, squeeze=False)[0]
    for axes, database in zip(panels, databases, strict=False):
        rows = [one for one in found if one["database"] == database]
        sizes = [one["items"] for one in rows]
        for (step, label), colour in zip(_STEPS.items(), _STEP_COLOURS, strict=True):
            axes.loglog(sizes, [one["items"] / one[step] for one in rows], "o-", color=colour, label=label)
        axes.set_title(database, fontsize=10)
        axes.set_xlabel("images")
        axes.set_ylabel("seconds")
        axes.legend(fontsize=8)
    for database, mark in zip(databases, "os", strict=False):
        rows = [one for one in found if one["database"] == database]
        sizes = [one["items"] for one in rows]
        for (memory, label), style in zip(_MEMORIES.items(), ("-", "--"), strict=True):
            drawn = [one[memory] for one in rows]
            panels[-1].semilogx(sizes, drawn, f"{mark}{style}", label=f"{database}, {label}")
    panels[-1].set_ylim(0, 1.3 * max(one[memory] for one in found for memory in _MEMORIES))
    panels[-1].set_title("memory of a process", fontsize=10)
    panels[-1].set_xlabel("images")
    panels[-1].set_ylabel("MB")
    # Memory begins far above 0, and the axis does not.
    panels[-1].legend(fontsize=8, loc="lower left")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def draw_bars(file: Path, title: str, races: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw the median rate of each way, with the least and the most, a panel for each kind of files.

    Args:
        file: PNG to write.
        title: Above both panels.
        races: Kind of files to way to images a second in each round; "bound of WAY" is a mark on its bar.
    """
    figure = Figure(figsize=(10, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, rates) in zip(figure.subplots(1, len(races), squeeze=False)[0], races.items(), strict=True):
        middles = {name: statistics.median(found) for name, found in rates.items() if not name.startswith("bound")}
        ways = sorted(middles, key=middles.__getitem__)
        for row, name in enumerate(ways):
            middle, bound = middles[name], rates.get(f"bound of {name}")
            spread = [[middle - min(rates[name])], [max(rates[name]) - middle]]
            axes.barh(row, middle, 0.6, color=OTHERS if bound is None else OURS, xerr=spread, capsize=3)
            end = max(rates[name])
            if bound is not None:
                limit = statistics.median(bound)
                axes.plot([limit, limit], [row - 0.38, row + 0.38], color=BOUND, linewidth=3)
                end = max(end, limit)
            axes.annotate(f"{middle:,.1f}", (end, row), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(ways)), ways)
        axes.set_title(kind, fontsize=10)
        axes.margins(x=0.16)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.supxlabel("images a second; an orange mark is what decoding and network alone allow", fontsize=10)
    figure.savefig(file)
