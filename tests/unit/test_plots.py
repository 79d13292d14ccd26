"""What the plots show is what the figures of merit say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from model.crossfit import Verdicts
from model.errors import TrainingDataError
from model.images import decode_image
from model.labels import CLASSES
from model.metadata import PatientMetadata
from model.metrics import expected_calibration_error
from model.plots import (
    plot_confusion,
    plot_curves,
    plot_reliability,
    plot_roc,
    read_curves,
    write_evaluation,
    write_figure,
)

MEL, NV, DF = (CLASSES.index(name) for name in ("mel", "nv", "df"))


def verdicts(scores: list[float], labels: list[int], *, before: list[float] | None = None) -> Verdicts:
    """Verdicts with these posteriors of melanoma and the rest on nv, at a flat prior."""
    nobody = np.zeros(len(scores), bool)
    return Verdicts(
        uncalibrated=posteriors(before or scores),
        posteriors=posteriors(scores),
        prior=np.full(7, 1 / 7),
        unfamiliar=nobody,
        unsure=nobody,
        threshold=0.3,
        labels=np.array(labels),
        lesion_ids=[str(number) for number in range(len(scores))],
        patients=[PatientMetadata()] * len(scores),
        dx_types=["histo"] * len(scores),
    )


def posteriors(melanoma: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    made = np.zeros((len(melanoma), 7))
    made[:, MEL] = melanoma
    made[:, NV] = 1 - made[:, MEL]
    return made


def labelled(axes: Axes) -> dict[str, object]:
    """What the legend names, by its label."""
    return dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))


def test_the_confusion_matrix_shows_each_count_and_shades_it_by_its_row() -> None:
    # Given three melanomas, one of them missed, and a nevus
    figure = plot_confusion(verdicts([0.9, 0.8, 0.1, 0.2], [MEL, MEL, MEL, NV]))

    # Then its cells say so, and the row of a class without images is empty
    axes = figure.axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[MEL, MEL] == "2\n67%"
    assert texts[NV, MEL] == "1\n33%"
    assert texts[NV, NV] == "1\n100%"
    assert sum(text == "0" for text in texts.values()) == 49 - 3
    shades = np.asarray(axes.images[0].get_array())
    assert shades.sum(axis=1).tolist() == pytest.approx([float(index in (MEL, NV)) for index in range(7)])
    assert axes.get_yticklabels()[DF].get_text() == "df\nn = 0"


def test_a_share_that_would_be_rounded_to_nothing_is_not_shown_as_nothing() -> None:
    figure = plot_confusion(verdicts([0.9] + [0.1] * 400, [NV] * 401))

    assert "1\n< 1%" in {text.get_text() for text in figure.axes[0].texts}


def test_a_class_that_is_absent_has_no_roc_curve_and_the_operating_point_lies_on_the_malignant_one() -> None:
    # Given four of five images on the right side of the threshold
    figure = plot_roc(verdicts([0.9, 0.4, 0.35, 0.2, 0.1], [MEL, MEL, NV, NV, NV]))

    # Then two classes have a curve, and the point has both melanomas at one false alarm
    named = labelled(figure.axes[0])
    assert [label.split(",")[0] for label in named] == [
        "chance",
        "mel (AUC 1.000",
        "nv (AUC 1.000",
        "malignant score (AUC 1.000",
        "flagged from 0.300",
    ]
    point = named["flagged from 0.300"]
    assert np.ravel(point.get_data()) == pytest.approx([1 / 3, 1.0])  # type: ignore[attr-defined]


def test_the_reliability_diagram_shows_each_bin_before_and_after() -> None:
    # Given sixty images at .9 of which half are melanomas, which calibration brings to .5, and three elsewhere
    labels = [MEL, NV] * 30 + [NV] * 3
    made = verdicts([0.5] * 60 + [0.1] * 3, labels, before=[0.9] * 60 + [0.1] * 3)

    figure = plot_reliability(made)

    # Then the score's panel has one point each, and the bin of three is left to the histogram
    malignant, histogram = figure.axes[1], figure.axes[3]
    bars = [one for one in malignant.containers if isinstance(one, ErrorbarContainer)]
    points = [np.array(one.lines[0].get_xydata()).ravel().tolist() for one in bars]
    assert points == [pytest.approx([0.9, 0.5]), pytest.approx([0.5, 0.5])]
    counts = [np.asarray(steps.get_data().values) for steps in histogram.patches]  # type: ignore[attr-defined]
    assert [(one[1], one[7], one[13]) for one in counts] == [(3, 0, 60), (3, 60, 0)]
    # And the errors are those of the report
    truth = np.array(labels) == MEL
    for name, scores in (("before", made.uncalibrated[:, MEL]), ("after", made.posteriors[:, MEL])):
        assert f"{name}: calibration error {expected_calibration_error(scores, truth):.3f}" in labelled(malignant)


def test_the_reliability_diagram_of_a_packed_model_claims_no_more_than_its_temperature() -> None:
    made = verdicts([0.9, 0.1], [MEL, NV])

    titles = [plot_reliability(one).get_suptitle() for one in (made, replace(made, packed=True))]

    assert titles == [
        "Reliability before and after calibration: 2 images",
        "Reliability before and after temperature, offsets in both: 2 images",
    ]


def test_learning_curves_mark_where_the_images_grow_and_show_validation_where_there_was_one() -> None:
    rows = [{"epoch": epoch, "size": 32 if epoch < 3 else 64, "loss": 1 / epoch} for epoch in range(1, 5)]
    watched = [{**row, "validation_loss": 2 / row["epoch"]} for row in rows]

    alone, both = plot_curves({"fold-0": rows}), plot_curves({"fold-0": watched})

    assert list(labelled(alone.axes[0])) == ["fold-0: training"]
    assert list(labelled(both.axes[0])) == ["fold-0: training", "… validation"]
    line = labelled(both.axes[0])["… validation"]
    assert line.get_ydata().tolist() == pytest.approx([2, 1, 2 / 3, 0.5])  # type: ignore[attr-defined]
    assert [(note.get_text(), note.xy[0]) for note in both.axes[0].texts] == [  # type: ignore[attr-defined]
        (" 32 px", 0.5),
        (" 64 px", 2.5),
    ]


def test_curves_are_read_from_every_part_of_a_run_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    for part in ("fold-0", "fold-1"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "curves.jsonl").write_text(json.dumps({"epoch": 1, "size": 32, "loss": 2.5}) + "\n")

    assert read_curves(tmp_path) == {part: [{"epoch": 1, "size": 32, "loss": 2.5}] for part in ("fold-0", "fold-1")}

    for broken in ('{"epoch": 1', "[1, 2]", '{"epoch": null}'):
        (tmp_path / "fold-1" / "curves.jsonl").write_text(broken)
        with pytest.raises(TrainingDataError, match="not what a training run writes"):
            read_curves(tmp_path)


def test_a_figure_is_a_png_of_its_size_the_same_each_time_with_nothing_left_beside_it(tmp_path: Path) -> None:
    made = verdicts([0.9, 0.4, 0.2, 0.1], [MEL, MEL, NV, NV])

    write_evaluation(made, tmp_path / "once")
    write_evaluation(made, tmp_path / "twice")

    for name in ("confusion.png", "roc.png", "reliability.png"):
        data = (tmp_path / "once" / name).read_bytes()
        assert data == (tmp_path / "twice" / name).read_bytes()
        assert decode_image(data, 64).std() > 0
    assert len(list((tmp_path / "once").iterdir())) == 3


def test_a_figure_that_cannot_be_drawn_leaves_the_older_one(tmp_path: Path) -> None:
    # Given a plot, and a figure that fails while it is drawn
    path = tmp_path / "plot.png"
    path.write_bytes(b"older")
    broken = Figure()
    broken.text(0.5, 0.5, "$\\no$")

    with pytest.raises(ValueError, match="no"):
        write_figure(broken, path)

    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
