"""Draws figures as PNG: curves, confusion, ROC, reliability, maps over images; nothing else imports matplotlib."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from model.artifact import replace_file
from model.bootstrap import Interval
from model.crossfit import Verdicts
from model.curves import bin_confidences
from model.errors import TrainingDataError
from model.labels import CLASSES, MALIGNANT_INDEX
from model.metrics import CALIBRATION_BINS, calibration_bin, confusion_matrix, expected_calibration_error, roc_area

#: Dots an inch: text of 10 points is then 14 pixels high, and is read without zooming.
_DPI: Final = 100
#: Okabe & Ito 2008, told apart with any colour vision; grey for its yellow, which is too pale for a line on white.
_COLOURS: Final = ("#E69F00", "#56B4E9", "#009E73", "#666666", "#0072B2", "#D55E00", "#CC79A7")
_BEFORE, _AFTER = "#E69F00", "#0072B2"
#: Told apart in black and white too.
_STYLES: Final = ("-", "--")
#: Share of a row above which its cell is too dark for black figures.
_DARK: Final = 0.55
#: Images under which a bin of the reliability diagram is left out: its interval would span the figure.
LEAST_IN_BIN: Final = 5


def read_curves(run: Path) -> dict[str, list[dict[str, float]]]:
    """Read the learning curves of a run folder and of every part below it.

    Returns:
        Rows by part ("fold-0", or the folder's own name), each with epoch, size, loss and, where there were
        validation images, validation_loss.

    Raises:
        TrainingDataError: There are none, or they are not what a training run writes.
    """
    from model.training import CURVES

    curves = {}
    for file in sorted(run.rglob(CURVES)):
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            curves[file.parent.name] = [{name: float(value) for name, value in row.items()} for row in rows]
        except (ValueError, AttributeError, TypeError):
            raise TrainingDataError(f"The run's {CURVES} is not what a training run writes.") from None
    if not any(curves.values()):
        raise TrainingDataError("The run folder holds no learning curve: no epoch has ended in it.")
    return {part: rows for part, rows in curves.items() if rows}


def plot_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Plot the loss of each epoch: a line a part, dashed for validation, and a mark where the image size changes.

    Args:
        curves: From `read_curves`.
    """
    figure, axes = _start(8.5, 5)
    for (part, rows), colour in zip(curves.items(), itertools.cycle((_AFTER, *_COLOURS[:4], *_COLOURS[5:]))):
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, [row["loss"] for row in rows], "-o", color=colour, markersize=4, label=f"{part}: training")
        seen = [row for row in rows if "validation_loss" in row]
        if seen:
            losses = [row["validation_loss"] for row in seen]
            axes.plot([row["epoch"] for row in seen], losses, "--s", color=colour, markersize=4, label="… validation")
    for epoch, sizes in _size_steps(curves.values()).items():
        axes.axvline(epoch - 0.5, color="#999999", linestyle=":")
        place = (epoch - 0.5, 1.0)
        axes.annotate(
            f" {', '.join(map(str, sizes))} px",
            place,
            xycoords=axes.get_xaxis_transform(),
            va="bottom",
            color="#555555",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="loss")
    axes.set_title("Learning curves", pad=22)
    axes.legend(frameon=False)
    return figure


def _size_steps(curves: Iterable[Sequence[Mapping[str, float]]]) -> dict[float, list[int]]:
    """List the epochs that begin an image size in any part of a run, and the sizes, the smallest first."""
    steps: dict[float, set[int]] = {}
    for rows in curves:
        sizes = [(0.0, 0), *((row["epoch"], int(row["size"])) for row in rows)]
        for before, (epoch, size) in itertools.pairwise(sizes):
            if size != before[1]:
                steps.setdefault(epoch, set()).add(size)
    return {epoch: sorted(sizes) for epoch, sizes in sorted(steps.items())}


def plot_confusion(verdicts: Verdicts) -> Figure:
    """Plot the confusion matrix of `diagnosis`: counts, and shades by the share of the true class."""
    matrix = confusion_matrix(verdicts.labels, verdicts.diagnoses)
    # A class without images has no shares: its row stays white.
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = _start(7.5, 6.5)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        share = shares[row, column]
        text = f"{count:,}\n{_percent(share)}" if count else "0"
        axes.text(column, row, text, ha="center", va="center", color="white" if share > _DARK else "black")
    names = [f"{name}\nn = {count:,}" for name, count in zip(CLASSES, matrix.sum(axis=1), strict=True)]
    axes.set_xticks(range(len(CLASSES)), CLASSES)
    axes.set_yticks(range(len(CLASSES)), names)
    axes.set(xlabel="diagnosis", ylabel="truth", title=f"Confusion matrix: {len(verdicts.labels):,} images")
    figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.85)
    return figure


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "< 1%"  # noqa: PLR2004 - what would be rounded to nothing


def plot_roc(verdicts: Verdicts) -> Figure:
    """Plot the ROC curve of each class against the rest and of the malignant score, with the operating point on it.

    A class of which there is no image, or nothing else, has no curve.
    """
    figure, axes = _start(7.5, 7)
    axes.plot([0, 1], [0, 1], ":", color="#999999", label="chance")
    for index, name in enumerate(CLASSES):
        style = _STYLES[index % 2]
        _draw_roc(axes, verdicts.posteriors[:, index], verdicts.labels == index, name, _COLOURS[index], style)
    malignant, scores = np.isin(verdicts.labels, MALIGNANT_INDEX), verdicts.malignant_scores
    if _draw_roc(axes, scores, malignant, "malignant score", "black", "-", width=2.5):
        flagged = scores >= verdicts.threshold
        point = flagged[~malignant].mean(), flagged[malignant].mean()
        axes.plot(*point, "D", color="black", markersize=9, label=f"flagged from {verdicts.threshold:.3f}")
    axes.set(xlabel="1 - specificity, by image", ylabel="sensitivity, by image", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set(title=f"ROC, one against the rest: {len(scores):,} images", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def _draw_roc(
    axes: Axes,
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    name: str,
    colour: str,
    style: str,
    width: float = 1.5,
) -> bool:
    from sklearn.metrics import roc_curve

    if not 0 < np.count_nonzero(positive) < len(positive):
        return False
    false_positives, true_positives, _ = roc_curve(positive, scores)
    label = f"{name} (AUC {roc_area(scores, positive):.3f}, n = {np.count_nonzero(positive):,})"
    axes.plot(false_positives, true_positives, style, color=colour, linewidth=width, label=label)
    return True


def plot_reliability(verdicts: Verdicts) -> Figure:
    """Plot how often the posterior's argmax, and the malignant score, are right at each confidence (Guo et al. 2017).

    Both uncalibrated (of a packed model: at temperature 1, with its offsets) and calibrated, over the bins of the
    calibration error with at least five images; below, how many images a bin holds. The bars take the images for
    independent.
    """
    figure = Figure((10.5, 7.5), _DPI, layout="constrained")
    what = "temperature, offsets in both" if verdicts.packed else "calibration"
    figure.suptitle(f"Reliability before and after {what}: {len(verdicts.labels):,} images")
    malignant = np.isin(verdicts.labels, MALIGNANT_INDEX)
    axes = figure.subplots(2, 2, sharex="col", height_ratios=(3, 1))
    for one in axes.flat:
        one.set(xlim=(0, 1))
        one.spines[["top", "right"]].set_visible(b=False)
    for upper, lower in axes.T:
        upper.set(ylim=(0, 1))
        lower.set(yscale="log", ylabel="images")
    for posteriors, name, colour, marker in (
        (verdicts.uncalibrated, "before", _BEFORE, "s"),
        (verdicts.posteriors, "after", _AFTER, "o"),
    ):
        top = posteriors.argmax(axis=1) == verdicts.labels
        _draw_bins(axes[:, 0], posteriors.max(axis=1), top, name, colour, marker)
        _draw_bins(axes[:, 1], posteriors[:, MALIGNANT_INDEX].sum(axis=1), malignant, name, colour, marker)
    axes[0, 0].set(ylabel="share that is right")
    axes[0, 1].set(ylabel="share that is malignant")
    axes[1, 0].set(xlabel="confidence: the posterior's largest")
    axes[1, 1].set(xlabel="malignant score")
    for one in axes[0]:
        one.plot([0, 1], [0, 1], ":", color="#999999", label="calibrated")
        # Above the panel: any corner of it may hold a point.
        title = f"bins of {LEAST_IN_BIN} images or more; bars: 95 % Wilson"
        one.legend(loc="lower left", bbox_to_anchor=(0, 1), title=title, alignment="left", frameon=False)
    return figure


def _draw_bins(
    axes: NDArray[np.object_],
    confidences: NDArray[np.float64],
    correct: NDArray[np.bool_],
    name: str,
    colour: str,
    marker: str,
) -> None:
    bins = bin_confidences(confidences, correct)
    held = [one for one in bins if one.images >= LEAST_IN_BIN]
    means, shares = [one.confidence for one in held], [one.share for one in held]
    reach = [[one.share - one.low for one in held], [one.high - one.share for one in held]]
    label = f"{name}: calibration error {expected_calibration_error(confidences, correct):.3f}"
    axes[0].errorbar(means, shares, reach, fmt=f"-{marker}", color=colour, markersize=5, elinewidth=1, label=label)
    counts = np.bincount(calibration_bin(confidences), minlength=CALIBRATION_BINS)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    axes[1].stairs(counts, edges, color=colour, linewidth=1.5, baseline=0.5, linestyle="--" if marker == "s" else "-")


def plot_overlays(pixels: NDArray[np.uint8], maps: Mapping[str, NDArray[np.float32]]) -> Figure:
    """Show an image, and beside it each map laid over it.

    Args:
        pixels: `(height, width, 3)` uint8 RGB.
        maps: `(height, width)` float32 in [0, 1] each, by title, from `model.pictures.spread_map`.
    """
    height, width, _ = pixels.shape
    panels = 1 + len(maps)
    figure = Figure((panels * width / _DPI + 1.2, height / _DPI + 0.6), _DPI, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one, title in zip(axes, ("image", *maps), strict=True):
        one.imshow(pixels)
        one.set(title=title, xticks=[], yticks=[])
        one.spines[:].set_visible(b=False)
    for one, heat in zip(axes[1:], maps.values(), strict=True):
        # Clear where the map is low, so that the skin is seen; viridis is read with any colour vision.
        shown = one.imshow(heat, cmap="viridis", vmin=0, vmax=1, alpha=0.7 * heat)
    figure.colorbar(
        ScalarMappable(shown.norm, shown.cmap), ax=axes, label="share of the map's maximum", pad=0.01, shrink=0.9
    )
    return figure


def _start(width: float, height: float) -> tuple[Figure, Axes]:
    # No pyplot: its figures are the process's own until somebody closes them.
    figure = Figure((width, height), _DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(b=False)
    return figure, axes


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, at once or not at all; the same figure gives the same bytes."""
    out = io.BytesIO()
    # Without the program's name and version.
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    replace_file(path, out.getvalue())


def write_evaluation(verdicts: Verdicts, folder: Path) -> None:
    """Write confusion.png, roc.png and reliability.png into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_figure(plot_confusion(verdicts), folder / "confusion.png")
    write_figure(plot_roc(verdicts), folder / "roc.png")
    write_figure(plot_reliability(verdicts), folder / "reliability.png")


def plot_differences(differences: Mapping[str, Interval], name: str, *, chance: float | None = None) -> Figure:
    """Plot differences with their intervals, a row each, around 0.

    Args:
        differences: By what differs; undefined ones are left out.
        name: What is measured.
        chance: How much another seed alone makes, drawn as a band; None where that is not known.
    """
    drawn = [
        (what, one.value, one.low, one.high)
        for what, one in differences.items()
        if one.value is not None and one.low is not None and one.high is not None
    ]
    figure, axes = _start(9, 1.2 + 0.45 * len(drawn))
    for place, (_, value, low, high) in enumerate(drawn):
        noise = low <= 0 <= high or abs(value) <= (chance or 0)
        colour = _COLOURS[3] if noise else _AFTER
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o" if noise else "D", color=colour, markersize=7)
    axes.axvline(0, color="#999999", linestyle=":")
    if chance is not None:
        axes.axvspan(-chance, chance, color="#EEEEEE", zorder=0)
    axes.set_yticks(range(len(drawn)), [what for what, *_ in drawn])
    axes.invert_yaxis()
    axes.set(xlabel=f"difference in {name} (95 % interval)")
    # Over the whole figure: the axes begin far to the right.
    figure.suptitle("Grey: inside the noise" + ("" if chance is None else "; band: what another seed alone makes"))
    return figure
