"""The whole network: backbone, soft attention, metadata branch and classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import keras
from keras import layers
from pydantic import BaseModel, ConfigDict

from model.attention import SoftAttention
from model.backbones import build_backbone
from model.labels import CLASSES
from model.metadata import WIDTH


class NetworkConfig(BaseModel):
    """What the network is made of; part of every model's manifest.

    Attributes:
        backbone: A key of `model.backbones.BACKBONES`.
        attention: "corrected" soft attention.
        heads: Attention heads.
        metadata: "small" (one Dense of 64, trained with masked fields), or "none".
        input_size: Height and width in pixels.
        dropout: Share of pooled features dropped in training (the paper's 0.5).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Literal["MobileNet", "MobileNetV2"] = "MobileNetV2"
    attention: Literal["corrected"] = "corrected"
    heads: int = 16
    metadata: Literal["small", "none"] = "small"
    input_size: int = 160
    dropout: float = 0.5


def build_network(config: NetworkConfig, weights: Path | str | None = None) -> keras.Model:
    """Build the network.

    The feature map t and the attended map f are average-pooled and concatenated, so that any input size works
    with the same weights.

    Args:
        config: Architecture.
        weights: Backbone weights, see `build_backbone`.

    Returns:
        A model with inputs `image` `(n, s, s, 3)` float32 in [-1, 1] and `metadata` `(n, WIDTH)` float32, and outputs
        `logits` `(n, 7)` (before any prior), `features` `(n, f)` (pooled, before dropout) and `attention` `(n, h, w)`.
    """
    size = config.input_size
    image = keras.Input((size, size, 3), name="image")
    metadata = keras.Input((WIDTH,), name="metadata")
    backbone = build_backbone(config.backbone, size, weights)
    feature_map = backbone(image)
    features, attention = _attend(config, feature_map)
    joined = layers.Dropout(config.dropout, name="dropout")(features)
    if config.metadata == "small":
        branch = layers.Dense(64, activation="relu", name="metadata_dense")(metadata)
        joined = layers.Concatenate(name="join")([joined, branch])
    logits = layers.Dense(len(CLASSES), name="classifier", dtype="float32")(joined)
    return keras.Model(
        [image, metadata], {"logits": logits, "features": features, "attention": attention}, name="lesion_network"
    )


def _attend(config: NetworkConfig, feature_map: Any) -> tuple[Any, Any]:
    pooled = layers.GlobalAveragePooling2D(name="pool_features")(feature_map)
    attended, attention = SoftAttention(config.heads, name="soft_attention")(feature_map)
    pooled_attended = layers.GlobalAveragePooling2D(name="pool_attended")(attended)
    joined = layers.Concatenate(name="pooled")([pooled, pooled_attended])
    return layers.ReLU(name="pooled_relu")(joined), attention
