"""The convolutional networks the features are taken from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """One backbone and where it is cut.

    Attributes:
        application: Name in `keras.applications`.
        cut: Layer whose output is the feature map: the last full map.
        frozen: Name prefixes of the layers that stay as ImageNet made them (stem and first blocks).
    """

    application: str
    cut: str
    frozen: tuple[str, ...]


#: All take RGB in [-1, 1].
BACKBONES: Final = {
    "MobileNet": Backbone(application="MobileNet", cut="conv_pw_13_relu", frozen=("conv1", "conv_dw_1_", "conv_pw_1_")),
    "MobileNetV2": Backbone(
        application="MobileNetV2",
        cut="out_relu",
        frozen=("Conv1", "bn_Conv1", "expanded_conv_", "block_1_", "block_2_"),
    ),
}


def build_backbone(name: str, input_size: int, weights: Path | str | None = None) -> keras.Model:
    """Build a backbone up to its cut.

    Args:
        name: A key of `BACKBONES`.
        input_size: Height and width in pixels.
        weights: None (random), "imagenet" (downloaded by Keras), or a no-top `.weights.h5` file.

    Returns:
        A model from `(batch, input_size, input_size, 3)` float32 in [-1, 1] to the feature map.
    """
    backbone = BACKBONES[name]
    application: Any = getattr(keras.applications, backbone.application)
    full = application(
        input_shape=(input_size, input_size, 3),
        include_top=False,
        weights="imagenet" if weights == "imagenet" else None,
        name="backbone",
    )
    if weights not in (None, "imagenet"):
        full.load_weights(str(weights))
    return keras.Model(full.input, full.get_layer(backbone.cut).output, name="backbone")


def freeze_first_blocks(model: keras.Model, name: str) -> None:
    """Keep the stem and the first blocks of a backbone as they are."""
    for layer in model.layers:
        layer.trainable = not layer.name.startswith(BACKBONES[name].frozen)
