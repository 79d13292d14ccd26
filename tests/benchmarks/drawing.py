"""The plots of the benchmarks."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Okabe & Ito 2008, told apart with any colour vision.
OURS, OTHERS, BOUND = "#0072B2", "#999999", "#E69F00"
_DPI: Final = 110


def draw_bars(file: Path, title: str, races: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw the median rate of each way, with the least and the most, a panel for each kind of files."""
    figure = Figure(figsize=(10, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, rates) in zip(figure.subplots(1, len(races), squeeze=False)[0], races.items(), strict=True):
        ways = sorted(
            (name for name in rates if not name.startswith("bound")), key=lambda name: statistics.median(rates[name])
        )
        for row, name in enumerate(ways):
            middle, bound = statistics.median(rates[name]), rates.get(f"bound of {name}")
            spread = [[middle - min(rates[name])], [max(rates[name]) - middle]]
            axes.barh(row, middle, 0.6, color=OTHERS if bound is None else OURS, xerr=spread, capsize=3)
            axes.annotate(f"{middle:,.1f}", (0, row), (4, 0), textcoords="offset points", va="center", color="white")
            if bound is not None:
                axes.plot([statistics.median(bound)] * 2, [row - 0.38, row + 0.38], color=BOUND, linewidth=3)
        axes.set_yticks(range(len(ways)), ways)
        axes.set_xlabel("images a second; the orange mark is what decoding\nand network alone allow")
        axes.set_title(kind, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(file)
