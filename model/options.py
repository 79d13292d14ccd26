"""Options that several commands of `lesion-model` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from model.starting import StartWeights


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what every command that trains by a recipe takes."""
    for option in (
        click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path)),
        click.option(
            "--run",
            required=True,
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder of checkpoints and curves.",
        ),
        click.option("--recipe", default="default", show_default=True, help="See `lesion-model recipes`."),
        click.option("--backbone", help="Another backbone than the recipe's."),
        click.option("--input-size", type=click.IntRange(32, 1024), help="Another input size in pixels."),
        click.option("--stages", callback=_stages, help='Epochs and sizes in turn, such as "4x128,8x224".'),
        click.option(
            "--weights",
            multiple=True,
            callback=_weights,
            help="Backbone weights: imagenet (default), none, a file, or BACKBONE=FILE for each; or the folder of a "
            "model to go on from.",
        ),
    ):
        command = option(command)
    return command


def _weights(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> StartWeights:
    from model.starting import parse_weights

    return parse_weights(value)


def _stages(_context: click.Context, _option: click.Parameter, value: str | None) -> list[tuple[int, int]] | None:
    if value is None:
        return None
    from model.recipes import parse_stages

    return parse_stages(value)
