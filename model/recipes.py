"""Named training recipes: the paper's two, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

from model.architectures import recipe_network
from model.backbones import BACKBONES, LEAST_SIZES, BackboneName
from model.build import BuildConfig
from model.dataset import CACHED_SIZE
from model.errors import ModelError
from model.labels import CLASSES
from model.training import Stage, TrainingConfig

#: Height and width in pixels below which the backbones leave nothing of an image: they halve it five times.
_LEAST_SIZE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A configuration people know by name; a change in what it does is a new version.

    Attributes:
        summary: What it is, in a line.
        version: Counts changes.
        backbone: Where nothing else is asked for.
        training: How it trains; `model.architectures.recipe_network` says what.
        beside: How the networks beside the first train, where that is otherwise.
    """

    summary: str
    version: int
    backbone: BackboneName
    training: TrainingConfig
    beside: tuple[TrainingConfig, ...] = ()


#: What both of the paper's recipes share: its notebooks train the whole network with Keras's `fit`, in batches of ten,
#: for at most 150 epochs.
_NOTEBOOKS: Final = TrainingConfig(
    stages=(Stage(epochs=150, size=224),),
    batch_size=10,
    learning_rate=1e-3,
    head_factor=1.0,
    schedule="plateau",
    warmup_steps=0,
    epsilon=0.1,
    weight_decay=0.0,
    clip_norm=None,
    loss="weighted",
    smoothing=0.0,
    ema=0.0,
    augmentation="none",
    mask_metadata=False,
    kept_size=CACHED_SIZE,
    drop_missing_ages=True,
)

RECIPES: Final = {
    "default": Recipe(
        summary="ours: balanced softmax, growing images, turned views, masked metadata, averaged weights",
        version=5,
        backbone="MobileNet",
        training=TrainingConfig(),
    ),
    "pair": Recipe(
        summary="default, a second network that sees smaller images, and their mean, at 1.6 times the cost",
        version=6,
        backbone="MobileNet",
        training=TrainingConfig(),
        beside=(
            TrainingConfig(stages=(Stage(epochs=7, size=128), Stage(epochs=6, size=160), Stage(epochs=4, size=224))),
        ),
    ),
    "accelerated": Recipe(
        summary="ours on a GPU (KERAS_BACKEND=jax): 30 epochs at 224 pixels in bfloat16",
        version=2,
        backbone="MobileNet",
        training=TrainingConfig(
            stages=(Stage(epochs=30, size=224),),
            batch_size=64,
            learning_rate=8e-4,
            precision="bfloat16",
            smooth_to="uniform",
        ),
    ),
    "frozen": Recipe(
        summary="ours for few images: ImageNet's batch statistics and first blocks stay as they are",
        version=2,
        backbone="MobileNetV2",
        training=TrainingConfig(
            stages=(Stage(epochs=4, size=128), Stage(epochs=6, size=160), Stage(epochs=8, size=224)),
            batch_size=16,
            learning_rate=6e-5,
            head_factor=15.0,
            batch_norm="frozen",
            freeze_first_blocks=True,
            augmentation="crops",
            kept_size=CACHED_SIZE,
            smooth_to="uniform",
        ),
    ),
    "paper-metadata": Recipe(
        summary="Nguyen, Bui & Do 2022: metadata and a loss weighted by class frequency",
        version=1,
        backbone="MobileNetV3Large",
        training=_NOTEBOOKS,
    ),
    "paper-augmented": Recipe(
        summary="Nguyen, Bui & Do 2022, after Datta et al. 2021: 18 015 augmented images, melanoma weighted five times",
        version=1,
        backbone="InceptionResNetV2",
        training=_NOTEBOOKS.model_copy(
            update={
                "learning_rate": 1e-2,
                "class_weights": tuple(5.0 if name == "mel" else 1.0 for name in CLASSES),
                "augmentation": "affine",
                # Neither paper says how the images are shared among the classes.
                "images_an_epoch": 18_015,
                "drop_missing_ages": False,
            }
        ),
    ),
}


def parse_stages(text: str) -> list[tuple[int, int]]:
    """Read stages as people write them: epochs and image sizes in turn, such as "4x128,8x224".

    Raises:
        ModelError: It is written otherwise, or a stage has no epoch or images of less than 32 pixels.
    """
    try:
        stages = [(int(epochs), int(size)) for epochs, size in (part.split("x") for part in text.split(","))]
    except ValueError:
        stages = []
    if not stages or any(epochs < 1 or size < _LEAST_SIZE for epochs, size in stages):
        raise ModelError(
            f"Stages are epochs, 1 or more, and sizes, {_LEAST_SIZE} pixels or more, in turn: give them as "
            '"4x128,8x224".'
        )
    return stages


def configure(
    recipe: str = "default",
    *,
    backbone: str | None = None,
    input_size: int | None = None,
    stages: list[tuple[int, int]] | None = None,
) -> BuildConfig:
    """Take a recipe, and change what a person asked for.

    Args:
        recipe: A key of `RECIPES`.
        backbone: Another backbone than the recipe's.
        input_size: Another height and width in pixels when scoring.
        stages: Pairs of epochs and image size, of every network. One that flattens its maps is shown every image at
            its own input size.

    Raises:
        ModelError: There is no such recipe or backbone, or images are too small for the backbone.
    """
    if recipe not in RECIPES:
        raise ModelError(f"There is no recipe {recipe!r}; there are: {', '.join(RECIPES)}.")
    if backbone is not None and backbone not in BACKBONES:
        raise ModelError(f"There is no backbone {backbone!r}; there are: {', '.join(BACKBONES)}.")
    chosen = RECIPES[recipe]
    network = recipe_network(recipe, cast("BackboneName", backbone or chosen.backbone))
    if input_size is not None:
        others = [one.model_copy(update={"input_size": min(one.input_size, input_size)}) for one in network.beside]
        network = network.model_copy(update={"input_size": input_size, "beside": tuple(others)})
    sizes = chosen.training.stages
    if stages is not None:
        sizes = tuple(Stage(epochs=epochs, size=size) for epochs, size in stages)
    if network.head == "flatten":
        sizes = tuple(stage.model_copy(update={"size": network.input_size}) for stage in sizes)
    least = LEAST_SIZES.get(network.backbone, 0)
    if min(network.input_size, *(stage.size for stage in sizes)) < least:
        raise ModelError(f"{network.backbone} takes images of at least {least} pixels: give larger sizes.")
    return BuildConfig(
        recipe=f"{recipe}, version {chosen.version}",
        network=network,
        training=chosen.training.model_copy(update={"stages": sizes}),
        beside=chosen.beside if stages is None else (),
    )
