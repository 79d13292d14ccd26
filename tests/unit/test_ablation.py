"""The ablation trains with and without soft attention and metadata, and says which differences are noise."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from model.ablation import DECIDING, FIGURES, Ablation, Difference, _put_in, plan_variants, write_ablation
from model.bootstrap import Interval
from model.build import BuildConfig
from model.cli import main
from model.images import measure_image
from model.network import NetworkConfig
from model.recipes import configure
from tests.labelled import draw_labelled


def difference(value: float, low: float, high: float, *, seed_alone: float | None = None) -> Difference:
    interval = Interval(value=value, low=low, high=high)
    figures = dict.fromkeys(FIGURES, interval)
    return Difference(what="Soft attention", one="a", other="b", figures=figures, seed_alone=seed_alone)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (difference(0.02, -0.01, 0.05), "+0.020 (-0.010 to +0.050), inside the noise."),
        (difference(0.04, 0.01, 0.07), "+0.040 (+0.010 to +0.070), better, beyond the noise."),
        (difference(-0.04, -0.07, -0.01), "-0.040 (-0.070 to -0.010), worse, beyond the noise."),
        (difference(0.04, 0.01, 0.07, seed_alone=0.03), "+0.040 (+0.010 to +0.070), better, beyond the noise."),
        (
            difference(-0.04, -0.07, -0.01, seed_alone=0.05),
            "-0.040 (-0.070 to -0.010), inside the noise of training: another seed alone makes 0.050.",
        ),
    ],
    ids=["holds 0", "above", "below", "above another seed", "under another seed"],
)
def test_a_difference_is_said_in_a_sentence(one: Difference, said: str) -> None:
    assert str(one) == f"Soft attention: balanced accuracy {said}"


def test_variants_are_a_grid_and_a_control() -> None:
    names = [one.name for one in plan_variants(BuildConfig(), forms=["as-coded"])]

    assert names == [
        "corrected attention, small metadata",
        "as-coded attention, small metadata",
        "no attention, small metadata",
        "corrected attention, no metadata",
        "as-coded attention, no metadata",
        "no attention, no metadata",
        "corrected attention, small metadata, seed 1",
    ]
    # And where networks are joined, none has a seed that another one had
    several = configure("pair")
    assert plan_variants(several)[-1].seed == 2
    assert [one.seed for _, one in _put_in(several, plan_variants(several)[-1]).parts] == [2, 2]
    # And a recipe without metadata has nothing to take away
    bare = BuildConfig(network=NetworkConfig(metadata="none"))
    assert len(plan_variants(bare, control=False)) == 2


@pytest.mark.usefixtures("eagerly")
def test_an_ablation_compares_every_pair_that_differs_in_one_thing_and_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given labelled images
    draw_labelled(tmp_path / "data", lesions=12)
    run = tmp_path / "run"
    options = ["--backbone", "MobileNet", "--stages", "1x32", "--input-size", "32", "--weights", "none", "--fold", "0"]
    asked = ["ablate", str(tmp_path / "data"), "--run", str(run), "--images", "70", *options]

    # If the ablation is run
    answer = CliRunner().invoke(main, asked)

    # Then each of four pairs is a sentence, each network a row, and the plot is there
    assert answer.exit_code == 0, answer.output
    found = Ablation.model_validate_json((run / "ablation.json").read_bytes())
    assert [one.what for one in found.differences] == [
        "Soft attention (corrected) with metadata",
        "Metadata with soft attention (corrected)",
        "Metadata without soft attention",
        "Soft attention (corrected) without metadata",
    ]
    assert answer.stdout.splitlines() == [str(one) for one in found.differences]
    text = (run / "ablation.md").read_text(encoding="utf-8")
    assert text == write_ablation(found)
    assert all(f"| {one.name} |" in text for one in found.variants)
    assert f"judged on the same {found.images} images of {found.lesions} lesions" in text
    assert measure_image((run / "ablation.png").read_bytes())[0] > 500
    # And a difference is that of the two networks
    figures = {one.name: one.figures[DECIDING].value or 0.0 for one in found.variants}
    assert found.control is not None
    for one in (*found.differences, found.control):
        assert one.figures[DECIDING].value == pytest.approx(figures[one.one] - figures[one.other])
    assert {one.seed_alone for one in found.differences} == {abs(found.control.figures[DECIDING].value or 0.0)}

    # If it is asked again, then nothing is trained
    monkeypatch.setattr("model.build.Trainer", None)
    again = CliRunner().invoke(main, [*asked, "--json"])
    assert again.exit_code == 0, again.output
    assert Ablation.model_validate_json(again.stdout) == found
