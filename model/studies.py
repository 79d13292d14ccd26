"""The commands of `lesion-model` that compare trainings, and `restate`, which says on a card what came of that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from model.options import training_options

if TYPE_CHECKING:
    from model.attention import AttentionForm
    from model.experiments import Split
    from model.starting import StartWeights

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
#: What `tables` writes.
TABLES_MARKDOWN: Final = "tables.md"
TABLES_JSON: Final = "tables.json"


def add_studies(program: click.Group) -> None:
    """Add the commands.

    Args:
        program: `lesion-model`.
    """
    for command in (tables, ablate, curves, restate):
        program.add_command(command)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of what it writes."
)
@click.option("--table", "numbers", multiple=True, type=click.IntRange(1, 10), help="Only these; may be repeated.")
@click.option("--backbone", "backbones", multiple=True, help="Only these; may be repeated.")
@click.option(
    "--split", type=click.Choice(["lesion", "leaky"]), default="lesion", show_default=True, help="leaky: the paper's."
)
@click.option("--budget", type=click.Choice(["smoke", "small", "paper"]), default="small", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Another number than the budget's.")
@click.option("--size", type=click.IntRange(32, 1024), help="Other pixels than the budget's.")
@click.option("--images", type=click.IntRange(70), help="Another number than the budget's, trained on and judged.")
@click.option("--steps", type=click.IntRange(1), help="Steps an epoch at most.")
@click.option("--folds", type=click.IntRange(1, 5), help="Trainings of each network, another fifth judged by each.")
@click.option("--weights", multiple=True, help="imagenet (default), none, or BACKBONE=FILE; may be repeated.")
@click.option(
    "--large",
    type=click.Choice(["step", "whole", "skip"]),
    help="What networks over 15 million parameters get: a single step (default where nothing accelerates), the whole "
    "budget, or nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def tables(
    data: Path,
    out: Path,
    numbers: tuple[int, ...],
    backbones: tuple[str, ...],
    split: Split,
    budget: str,
    weights: tuple[str, ...],
    large: str | None,
    as_json: bool,
    **changes: int | None,
) -> None:
    """Train the networks of the paper's tables on DATA (HAM10000's layout) and write ours beside the paper's figures.

    A training that is done is kept in --out and not done again; one that was stopped goes on from its last epoch.
    """
    from model.backbones import BACKBONES
    from model.dataset import read_labels
    from model.errors import ModelError, TrainingDataError
    from model.experiments import BUDGETS, Laboratory
    from model.progress import TrainingBars
    from model.starting import parse_weights
    from model.table_report import write_tables
    from model.tables import LARGE, NUMBERS, repeat_tables

    for name in backbones:
        if name not in BACKBONES:
            raise ModelError(f"There is no backbone {name!r}; there are: {', '.join(BACKBONES)}.")
    rows = read_labels(data)
    if not rows:
        raise TrainingDataError("The data folder names no image.")
    given = BUDGETS[budget].model_copy(update={name: value for name, value in changes.items() if value is not None})
    chosen = [name for name in backbones or BACKBONES if not (large == "skip" and name in LARGE)]
    one_step = LARGE if large == "step" or (large is None and not _accelerated()) else frozenset()
    with TrainingBars() as bars:
        laboratory = Laboratory(
            rows,
            out=out,
            split=split,
            budget=given,
            weights=parse_weights(weights),
            one_step=one_step,
            report=bars.show,
        )
        report = repeat_tables(laboratory, rows, numbers or NUMBERS, chosen)
    out.mkdir(parents=True, exist_ok=True)
    (out / TABLES_MARKDOWN).write_text(write_tables(report), encoding="utf-8")
    (out / TABLES_JSON).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    told = f"Wrote {out / TABLES_MARKDOWN} and {TABLES_JSON}: {len(report.findings)} trainings."
    click.echo(report.model_dump_json(indent=1) if as_json else told)


def _accelerated() -> bool:
    from model.device import prepare_device

    return prepare_device() == "gpu"


@click.command()
@training_options
@click.option("--fold", "folds", multiple=True, type=click.IntRange(0, 4), help="Only these; may be repeated.")
@click.option("--images", type=click.IntRange(70), help="About so many images, trained on and judged; else all.")
@click.option(
    "--form",
    "forms",
    multiple=True,
    type=click.Choice(["corrected", "as-published", "as-coded"]),
    help="A further form of soft attention; may be repeated.",
)
@click.option(
    "--control/--no-control",
    default=True,
    show_default=True,
    help="Train the whole network once more with another seed, to see what chance in training does.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def ablate(
    data: Path,
    run: Path,
    weights: StartWeights,
    folds: tuple[int, ...],
    images: int | None,
    forms: tuple[AttentionForm, ...],
    control: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Train a recipe's network with and without soft attention, with and without metadata, and compare them.

    Same images, folds and budget for all; writes ablation.md, .json and .png into --run. What was trained there is not
    trained again.
    """
    import numpy as np

    from model.ablation import DECIDING, FIGURES, plan_variants, run_ablation, write_ablation
    from model.dataset import read_labels
    from model.plots import plot_differences, write_figure
    from model.progress import TrainingBars
    from model.recipes import configure
    from model.splits import FOLDS, choose_part

    rows, config = read_labels(data), configure(**choices)
    if images is not None:
        chosen = choose_part([row.lesion_id for row in rows], np.array([row.label for row in rows]), images)
        rows = [row for row, taken in zip(rows, chosen, strict=True) if taken]
    variants = plan_variants(config, forms=forms, control=control)
    with TrainingBars() as bars:
        found = run_ablation(
            rows, config, variants, folds=folds or range(FOLDS), weights=weights, run=run, report=bars.show
        )
    changes = {one.what: one.figures[DECIDING] for one in found.differences}
    chance = None if found.control is None else found.control.figures[DECIDING].value
    figure = plot_differences(changes, FIGURES[DECIDING], chance=None if chance is None else abs(chance))
    write_figure(figure, run / "ablation.png")
    (run / "ablation.md").write_text(write_ablation(found), encoding="utf-8")
    (run / "ablation.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    click.echo(found.model_dump_json(indent=1) if as_json else "\n".join(map(str, found.differences)))


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The PNG.")
def curves(run: Path, out: Path) -> None:
    """Plot the learning curves of a RUN folder, of all its parts that have trained an epoch."""
    from model.plots import plot_curves, read_curves, write_figure

    figure = plot_curves(read_curves(run))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_figure(figure, out)
    click.echo(f"Wrote {out}.")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the copy.")
@click.option("--explanation", type=_FILE, help="What `deletion-test --json` wrote.")
@click.option("--trials", type=_FILE, help="JSON list of what was tried: name, judged_on and three figures each.")
def restate(folder: Path, out: Path, explanation: Path | None, trials: Path | None) -> None:
    """Copy the artifact in FOLDER with more on its card: a deletion test, and what was tried on the way to it.

    The copy scores as the model does, under another digest.
    """
    from pydantic import TypeAdapter, ValidationError

    from model.package import restate_model
    from model.report import Explanation, Trial

    if explanation is None and trials is None:
        raise click.UsageError("There is nothing to state: give --explanation, --trials, or both.")
    try:
        found = None if explanation is None else Explanation.model_validate_json(explanation.read_bytes())
        tried = [] if trials is None else TypeAdapter(list[Trial]).validate_json(trials.read_bytes())
    except ValidationError as error:
        raise click.UsageError(f"That is not what a card states: {error.errors()[0]['msg']}.") from None
    manifest = restate_model(folder, out, explanation=found, trials=tried)
    click.echo(f"Wrote model {manifest.digest} to {out}; its card is MODEL_CARD.md there.")
