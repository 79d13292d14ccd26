"""Named training recipes: the paper's two, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from model.build import BuildConfig
from model.errors import ModelError
from model.network import NetworkConfig
from model.training import Stage, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A configuration people know by name; a change in what it does is a new version.

    Attributes:
        summary: What it is, in a line.
        version: Counts changes.
        config: What it builds.
    """

    summary: str
    version: int
    config: BuildConfig


RECIPES: Final = {
    "default": Recipe(
        summary="ours: balanced softmax, growing images, masked metadata, averaged weights",
        version=1,
        config=BuildConfig(recipe="default", network=NetworkConfig(input_size=224), training=TrainingConfig()),
    ),
}


def find_recipe(name: str) -> BuildConfig:
    """Return a recipe's configuration.

    Raises:
        ModelError: There is none of that name.
    """
    if name not in RECIPES:
        raise ModelError(f"There is no recipe {name!r}; there are: {', '.join(RECIPES)}.")
    return RECIPES[name].config


def change_recipe(
    config: BuildConfig,
    *,
    backbone: str | None = None,
    input_size: int | None = None,
    stages: list[tuple[int, int]] | None = None,
) -> BuildConfig:
    """Change what a person asked for, and leave the rest of a recipe as it is.

    Args:
        config: The recipe.
        backbone: Another backbone.
        input_size: Another height and width in pixels when scoring.
        stages: Pairs of epochs and image size.
    """
    asked: dict[str, Any] = {"backbone": backbone, "input_size": input_size}
    network = config.network.model_dump() | {key: value for key, value in asked.items() if value is not None}
    training = config.training
    if stages is not None:
        chosen = tuple(Stage(epochs=epochs, size=size) for epochs, size in stages)
        training = training.model_copy(update={"stages": chosen})
    return config.model_copy(update={"network": NetworkConfig.model_validate(network), "training": training})
