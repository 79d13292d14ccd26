"""The whole network: backbone, soft attention, metadata branch and classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_validator,
)

from model.artifact import LEAST_INPUT, MOST_INPUT, name_backbones
from model.attention import AttentionForm, SoftAttention
from model.backbones import BACKBONES, LAST, BackboneName, build_backbone
from model.familiarity import MEASURED
from model.joining import ORDER, fit_images, join_networks, split_network
from model.labels import CLASSES
from model.metadata import MetadataEncoding, metadata_width

#: Units of the metadata branches: the paper's notebooks, and Gessert et al. (arXiv 1910.03910, section 2.4).
_PAPER_UNITS = 4096
_GESSERT_UNITS = 256
_GESSERT_DROPOUT = 0.4


class BesideConfig(BaseModel):
    """A network beside the first: alike in all else, and trained apart.

    Attributes:
        backbone: A key of `model.backbones.BACKBONES`.
        input_size: Height and width in pixels, at most the first's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneName
    input_size: int = Field(ge=LEAST_INPUT, le=MOST_INPUT)


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
        beside: Further networks, whose logits are averaged with the first's: they err on different images, even where
            only chance sets them apart. Models of earlier versions have the second one's backbone here.
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
    beside: tuple[BesideConfig, ...] = Field((), max_length=len(ORDER) - 1)
    intermediate: bool = False

    @field_serializer("beside", mode="wrap")
    def _as_earlier_versions(self, others: tuple[BesideConfig, ...], write: SerializerFunctionWrapHandler) -> Any:
        # A run is known by what this writes, and those of one network are to go on.
        return write(others) if others else None

    @model_validator(mode="before")
    @classmethod
    def _earlier_versions(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(name := given.get("beside", ()), str | None):
            return given
        size = given.get("input_size", cls.model_fields["input_size"].default)
        return {**given, "beside": () if name is None else ({"backbone": name, "input_size": size},)}

    @model_validator(mode="after")
    def _first_sees_most(self) -> NetworkConfig:
        if any(one.input_size > self.input_size for one in self.beside):
            raise ValueError("no network sees larger images than the first")
        return self

    @model_validator(mode="after")
    def _backbones_have_the_cut(self) -> NetworkConfig:
        for member in self.members:
            cuts = BACKBONES[member.backbone].cuts
            if self.cut not in cuts:
                raise ValueError(f"{member.backbone} has no cut {self.cut!r}; it has {', '.join(cuts)}")
        return self

    @property
    def members(self) -> tuple[NetworkConfig, ...]:
        """The networks that are trained apart, each by itself."""
        first = self.model_copy(update={"beside": ()})
        return first, *(first.model_copy(update=dict(one)) for one in self.beside)

    @property
    def backbones(self) -> str:
        """The backbone in words, or all of them."""
        return name_backbones([member.backbone for member in self.members])


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
    if config.beside:
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


def run_network(
    network: keras.Model, images: NDArray[np.uint8], metadata: NDArray[np.float32], *, batch: int = 64
) -> dict[str, NDArray[np.float32]]:
    """Run the network over decoded images.

    Args:
        network: From `build_network`.
        images: `(n, s, s, 3)` uint8; brought to the network's size where that is another.
        metadata: `(n, width)` float32.
        batch: Images a step.

    Returns:
        Its `logits` `(n, 7)`, and `(n, f)` of each output that is `MEASURED`.
    """
    wanted = ["logits", *(name for name in MEASURED if name in network.output)]
    said: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted}
    for start in range(0, len(images), batch):
        # Always as many, as a program is compiled for each number; the last batch repeats its last image.
        rows = np.minimum(np.arange(start, start + batch), len(images) - 1)
        inputs = [
            keras.ops.convert_to_tensor(one) for one in (images[rows].astype(np.float32) / 127.5 - 1.0, metadata[rows])
        ]
        outputs = network.predict_on_batch(fit_images(network, inputs))
        count = min(batch, len(images) - start)
        for name, parts in said.items():
            parts.append(outputs[name][:count])
    return {name: np.concatenate(parts) for name, parts in said.items()}


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
    """Add `(7,)` offsets to the network's logits for good: to the last bias of each network that is joined in it."""
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
