"""The whole network: backbone, soft attention, metadata branch and classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from model.artifact import name_backbones
from model.attention import AttentionForm, SoftAttention
from model.backbones import BACKBONES, LAST, BackboneName, build_backbone
from model.errors import ModelError
from model.familiarity import MEASURED
from model.labels import CLASSES
from model.metadata import MetadataEncoding, metadata_width

#: Units of the metadata branches: the paper's notebooks, and Gessert et al. (arXiv 1910.03910, section 2.4).
_PAPER_UNITS = 4096
_GESSERT_UNITS = 256
_GESSERT_DROPOUT = 0.4


class NetworkConfig(BaseModel):
    """What the network is made of; part of every model's manifest.

    Attributes:
        backbone: A key of `model.backbones.BACKBONES`.
        attention: A form of `model.attention.SoftAttention`, or "none".
        heads: Attention heads.
        metadata: "small" (one Dense of 64, trained with masked fields), "gessert" (two of 256 with batch norm and
            dropout), "paper" (the age normalised, one Dense of 4096), or "none".
        input_size: Height and width in pixels.
        dropout: Share of the image's features dropped in training (the paper's 0.5).
        cut: A key of the backbone's cuts.
        head: "pooled" averages each map t and f over its positions, so that any image size works with the same
            weights; "flatten" is the paper's: max-pooled 2x2 and flattened, for one image size.
        hidden: Units of a Dense layer before the classifier (the paper's Table 8 has one of 512), or 0.
        beside: Backbone of a second network that is alike in all else and trained apart, or None. The two networks'
            logits are averaged: they err on different images, even where only chance sets them apart.
        intermediate: Whether the distance from images of training is measured in an intermediate layer too, see
            `model.familiarity`; what the network says of a lesion is the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneName = "MobileNetV2"
    attention: AttentionForm | Literal["none"] = "corrected"
    heads: int = 16
    metadata: MetadataEncoding = "small"
    input_size: int = 160
    dropout: float = 0.5
    cut: str = LAST
    head: Literal["pooled", "flatten"] = "pooled"
    hidden: int = 0
    beside: BackboneName | None = None
    intermediate: bool = False

    @model_validator(mode="after")
    def _backbones_have_the_cut(self) -> NetworkConfig:
        for member in self.members:
            cuts = BACKBONES[member.backbone].cuts
            if self.cut not in cuts:
                raise ValueError(f"{member.backbone} has no cut {self.cut!r}; it has {', '.join(cuts)}")
        return self

    @property
    def members(self) -> tuple[NetworkConfig, ...]:
        """The networks that are trained apart, each by itself: one, or two."""
        if self.beside is None:
            return (self,)
        first = self.model_copy(update={"beside": None})
        return first, first.model_copy(update={"backbone": self.beside})

    @property
    def backbones(self) -> str:
        """The backbone in words, or both."""
        return name_backbones(self.backbone, self.beside)


@keras.saving.register_keras_serializable(package="lesion_screen")
class AgeNormalization(layers.Layer):
    """Brings the age in years, the first column, to mean 0 and deviation 1; the other columns stay.

    Keras's own `Normalization` keeps its statistics as constants beside its weights, so that weights assigned one by
    one, as an artifact's are, would not reach it. Like that one, it has a mean, a variance and a count.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the statistics: until they are fitted, years are years."""
        self.mean = self.add_weight(name="mean", shape=(), initializer="zeros", trainable=False)
        self.variance = self.add_weight(name="variance", shape=(), initializer="ones", trainable=False)
        self.count = self.add_weight(name="count", shape=(), dtype="int32", initializer="zeros", trainable=False)
        super().build(input_shape)

    def call(self, encoded: Any) -> Any:
        """Normalise `(n, width)` metadata."""
        age = (encoded[:, :1] - self.mean) / keras.ops.sqrt(self.variance)
        return keras.ops.concatenate([age, encoded[:, 1:]], axis=1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input's shape."""
        return input_shape

    def adapt(self, years: NDArray[np.float32]) -> None:
        """Take mean and variance from `(n,)` ages."""
        self.mean.assign(years.mean())
        # Patients of one age tell nothing about the spread.
        self.variance.assign(years.var() or 1.0)
        self.count.assign(len(years))


def build_network(config: NetworkConfig, weights: Path | str | None = None) -> keras.Model:
    """Build the network.

    Args:
        config: Architecture.
        weights: Backbone weights, see `build_backbone`; one file is not that of two backbones.

    Returns:
        A model with inputs `image` `(n, s, s, 3)` float32 RGB in [-1, 1], whatever the backbone, and `metadata`
        `(n, metadata_width(config.metadata))` float32, and outputs `logits` `(n, 7)` (before any prior), `features`
        `(n, f)` (pooled, before dropout), where there is attention `attention` `(n, h, w)`, and where it is asked for
        `intermediate` `(n, c)`, the means over the maps of an intermediate layer.

    Raises:
        ModelError: The weights cannot be had, or are not this backbone's.
    """
    if config.beside is not None:
        return join_networks([build_network(member, weights) for member in config.members])
    size = config.input_size
    image = keras.Input((size, size, 3), name="image")
    metadata = keras.Input((metadata_width(config.metadata),), name="metadata")
    backbone = build_backbone(config.backbone, size, weights, cut=config.cut, intermediate=config.intermediate)
    feature_map, *others = keras.tree.flatten(backbone(image))
    means = [layers.GlobalAveragePooling2D(name="pool_intermediate")(other) for other in others]
    features, attention = _pool(config, feature_map)
    joined = layers.Dropout(config.dropout, name="dropout")(features)
    if config.metadata != "none":
        joined = layers.Concatenate(name="join")([joined, _encode(config.metadata, metadata)])
    if config.hidden:
        joined = layers.Dense(config.hidden, activation="relu", name="hidden")(joined)
    logits = layers.Dense(len(CLASSES), name="classifier", dtype="float32")(joined)
    outputs = {"logits": logits, "features": features, **attention} | ({"intermediate": means[0]} if means else {})
    return keras.Model([image, metadata], outputs, name=f"{config.backbone}_network")


def join_networks(networks: Sequence[keras.Model]) -> keras.Model:
    """Join networks into one that means what they mean: one network is that already.

    Args:
        networks: From `build_network`, with attention maps of one size. Two are named by their order.

    Returns:
        A model of the same inputs and outputs: what distances are measured by, `features` and `intermediate`, is the
        first's, and all else the mean over the networks. It has the networks themselves as layers.

    Raises:
        ModelError: Their attention maps have different sizes.
    """
    if len(networks) == 1:
        return networks[0]
    for order, one in zip(("first", "second"), networks, strict=True):
        # As Keras wants names of layers to differ, and a pair may be of one backbone.
        one.name = f"{order}_network"
    inputs = [keras.Input(one.shape[1:], name=one.name) for one in networks[0].inputs]
    said = [network(inputs) for network in networks]
    if len({one["attention"].shape for one in said if "attention" in one}) > 1:
        raise ModelError("Two backbones whose last maps differ in size cannot stand beside each other.")
    outputs = {
        name: layers.Average(name=f"mean_{name}", dtype="float32")([one[name] for one in said])
        for name in ("logits", "attention", "evidence")
        if name in said[0]
    }
    measured = {name: said[0][name] for name in MEASURED if name in said[0]}
    return keras.Model(inputs, {**outputs, **measured}, name="joined_networks")


def split_network(network: keras.Model) -> list[keras.Model]:
    """Return the networks that `join_networks` joined, or the network itself."""
    return [layer for layer in network.layers if layer.name.endswith("_network")] or [network]


def fit_age(network: keras.Model, encoded: NDArray[np.float32]) -> None:
    """Fit the normalisation of the age to the training rows; a network without one is left as it is.

    Args:
        network: From `build_network`.
        encoded: `(n, width)` float32 from `encode_metadata`, of the training rows alone.
    """
    for layer in network.layers:
        if isinstance(layer, AgeNormalization):
            layer.adapt(encoded[:, 0])


def shift_logits(network: keras.Model, offsets: NDArray[np.float64]) -> None:
    """Add `(7,)` offsets to the network's logits for good: to its last bias, and to that of a network beside it."""
    for one in split_network(network):
        classifier = one.get_layer("classifier")
        kernel, bias = classifier.get_weights()
        classifier.set_weights([kernel, bias + offsets.astype(np.float32)])


def _pool(config: NetworkConfig, feature_map: Any) -> tuple[Any, dict[str, Any]]:
    pooled, outputs = _pooling(config, "pool_features")(feature_map), {}
    if config.attention != "none":
        attention = SoftAttention(config.heads, config.attention, name="soft_attention")
        attended, outputs["attention"] = attention(feature_map)
        pooled = layers.Concatenate(name="pooled")([pooled, _pooling(config, "pool_attended")(attended)])
    features = layers.ReLU(name="pooled_relu")(pooled)
    if config.head == "flatten":
        features = layers.Flatten(name="flattened")(features)
    return features, outputs


def _pooling(config: NetworkConfig, name: str) -> layers.Layer:
    if config.head == "flatten":
        # "same" gives the notebooks' parameter totals, and leaves a 1x1 map as it is.
        return layers.MaxPooling2D(2, padding="same", name=name)
    return layers.GlobalAveragePooling2D(name=name)


def _encode(encoding: MetadataEncoding, metadata: Any) -> Any:
    if encoding == "paper":
        normalised = AgeNormalization(name="age_normalization")(metadata)
        return layers.Dense(_PAPER_UNITS, activation="relu", name="metadata_dense")(normalised)
    if encoding == "small":
        return layers.Dense(64, activation="relu", name="metadata_dense")(metadata)
    branch = metadata
    for number in (1, 2):
        branch = layers.Dense(_GESSERT_UNITS, name=f"metadata_dense_{number}")(branch)
        branch = layers.BatchNormalization(name=f"metadata_norm_{number}")(branch)
        branch = layers.ReLU(name=f"metadata_relu_{number}")(branch)
        branch = layers.Dropout(_GESSERT_DROPOUT, name=f"metadata_dropout_{number}")(branch)
    return branch
