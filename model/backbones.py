"""The convolutional networks the features are taken from, and where each is cut."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import keras
from keras import layers

from model.errors import ModelError

BackboneName = Literal[
    "DenseNet201",
    "InceptionResNetV2",
    "ResNet50",
    "ResNet152",
    "VGG16",
    "NASNetLarge",
    "NASNetMobile",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "MobileNetV3Large",
]

#: `symmetric` is [-1, 1]; `imagenet` is [0, 1] less ImageNet's mean, over its deviation; `bgr` is [0, 255] in BGR less
#: ImageNet's mean.
PixelRange = Literal["symmetric", "imagenet", "bgr"]

#: The cut every backbone has: the last full feature map.
LAST: Final = "last"

#: ImageNet's mean and deviation of RGB in [0, 1], and mean of BGR in [0, 255], as `keras.applications` has them.
_MEAN: Final = (0.485, 0.456, 0.406)
_DEVIATION: Final = (0.229, 0.224, 0.225)
_BGR_MEAN: Final = (103.939, 116.779, 123.68)

#: What Keras calls layers with weights that an application does not name.
_NUMBERED: Final = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where the feature map is taken.

    Attributes:
        layer: Name of the layer.
        activation: Whether the map is that of the activation behind the layer: Keras names those anew in each process.
        top: Whether the layer belongs to the ImageNet classifier, which weights without a top do not cover.
    """

    layer: str
    activation: bool = False
    top: bool = False

    def __str__(self) -> str:
        return f"activation after {self.layer}" if self.activation else self.layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """One backbone.

    Attributes:
        application: Name in `keras.applications`.
        cuts: By name; `last` is the last full feature map.
        frozen: Last layer of the stem and first blocks, which stay as ImageNet made them.
        intermediate: Layer whose map tells an image's texture: about the middle of the blocks whose maps are a
            sixteenth of the image high and wide. Every cut lies behind it.
        paper_cut: Name of the cut of the paper's notebooks; `last` where they say nothing else.
        input_size: Height and width in pixels that the paper uses.
        pixels: Range of the pixels its ImageNet weights were trained on.
        options: What else the application is built with.
    """

    application: str
    cuts: Mapping[str, Cut]
    frozen: str
    intermediate: Cut
    paper_cut: str = LAST
    input_size: int = 224
    pixels: PixelRange = "symmetric"
    options: Mapping[str, Any] = field(default_factory=dict)


#: Least height and width in pixels of these: smaller images vanish before the last map.
LEAST_SIZES: Final[Mapping[str, int]] = {"InceptionResNetV2": 75}

#: The cuts of the paper's Table 8, which counts layers as Keras 2 did; the last four are inferred from their order.
_MOBILENET_V3_LARGE_CUTS: Final = {
    LAST: Cut(layer="conv_1_bn", activation=True),
    "[:230]": Cut(layer="expanded_conv_13_squeeze_excite_conv_1"),
    "[:240]": Cut(layer="expanded_conv_14_expand_bn", activation=True),
    "[:246]": Cut(layer="expanded_conv_14_depthwise_bn", activation=True),
    "[:251]": Cut(layer="expanded_conv_14_squeeze_excite_conv_1"),
    "[:260]": Cut(layer="conv_1_bn"),
    "[:266]": Cut(layer="conv_2", top=True),
    "[:270]": Cut(layer="dropout", top=True),
}

#: The notebooks' cuts are those that give their parameter totals exactly (tests/unit/test_architectures.py).
BACKBONES: Final[Mapping[BackboneName, Backbone]] = {
    "DenseNet201": Backbone(
        application="DenseNet201",
        cuts={LAST: Cut(layer="relu"), "paper": Cut(layer="conv5_block29_1_relu")},
        paper_cut="paper",
        frozen="pool2_pool",
        intermediate=Cut(layer="conv4_block24_concat"),
        pixels="imagenet",
    ),
    "InceptionResNetV2": Backbone(
        application="InceptionResNetV2",
        cuts={LAST: Cut(layer="conv_7b_ac"), "paper": Cut(layer="batch_normalization_195")},
        paper_cut="paper",
        frozen="mixed_5b",
        intermediate=Cut(layer="block17_10_ac"),
        input_size=299,
    ),
    "ResNet50": Backbone(
        application="ResNet50",
        cuts={LAST: Cut(layer="conv5_block3_out")},
        frozen="conv2_block3_out",
        intermediate=Cut(layer="conv4_block3_out"),
        pixels="bgr",
    ),
    "ResNet152": Backbone(
        application="ResNet152",
        cuts={LAST: Cut(layer="conv5_block3_out"), "paper": Cut(layer="conv5_block1_out")},
        paper_cut="paper",
        frozen="conv2_block3_out",
        intermediate=Cut(layer="conv4_block18_out"),
        pixels="bgr",
    ),
    "VGG16": Backbone(
        application="VGG16",
        cuts={LAST: Cut(layer="block5_pool")},
        frozen="block1_pool",
        intermediate=Cut(layer="block5_conv1"),
        pixels="bgr",
    ),
    "NASNetLarge": Backbone(
        application="NASNetLarge",
        cuts={
            LAST: Cut(layer="normal_concat_18", activation=True),
            "paper": Cut(layer="separable_conv_1_bn_normal_left5_18", activation=True),
        },
        paper_cut="paper",
        frozen="reduction_concat_stem_2",
        intermediate=Cut(layer="normal_concat_9"),
        input_size=331,
    ),
    "NASNetMobile": Backbone(
        application="NASNetMobile",
        cuts={
            LAST: Cut(layer="normal_concat_12", activation=True),
            "paper": Cut(layer="separable_conv_1_bn_normal_left5_12", activation=True),
        },
        paper_cut="paper",
        frozen="reduction_concat_stem_2",
        intermediate=Cut(layer="normal_concat_6"),
    ),
    "MobileNet": Backbone(
        application="MobileNet",
        cuts={LAST: Cut(layer="conv_pw_13_relu")},
        frozen="conv_pw_1_relu",
        intermediate=Cut(layer="conv_pw_9_relu"),
    ),
    "MobileNetV2": Backbone(
        application="MobileNetV2",
        cuts={LAST: Cut(layer="out_relu"), "paper": Cut(layer="block_14_depthwise")},
        paper_cut="paper",
        frozen="block_2_add",
        intermediate=Cut(layer="block_10_expand_relu"),
    ),
    "MobileNetV3Small": Backbone(
        application="MobileNetV3Small",
        cuts={
            LAST: Cut(layer="conv_1_bn", activation=True),
            "paper": Cut(layer="expanded_conv_10_depthwise_bn", activation=True),
        },
        paper_cut="paper",
        frozen="expanded_conv_project_bn",
        intermediate=Cut(layer="expanded_conv_5_expand_bn", activation=True),
        options={"include_preprocessing": False},
    ),
    "MobileNetV3Large": Backbone(
        application="MobileNetV3Large",
        cuts=_MOBILENET_V3_LARGE_CUTS,
        paper_cut="[:240]",
        frozen="expanded_conv_2_add",
        intermediate=Cut(layer="expanded_conv_8_expand_bn", activation=True),
        options={"include_preprocessing": False},
    ),
}


@keras.saving.register_keras_serializable(package="lesion_screen")
class PixelScaling(layers.Layer):
    """Brings RGB in [-1, 1] to the range a backbone's ImageNet weights expect; it has no weights.

    Args:
        pixels: The range.
    """

    def __init__(self, pixels: PixelRange, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pixels = pixels

    def call(self, image: Any) -> Any:
        """Scale `(batch, h, w, 3)` RGB in [-1, 1]."""
        if self.pixels == "imagenet":
            return (image * 0.5 + 0.5 - _row(_MEAN)) / _row(_DEVIATION)
        if self.pixels == "bgr":
            return image[..., ::-1] * 127.5 + 127.5 - _row(_BGR_MEAN)
        return image

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), "pixels": self.pixels}


def _row(values: tuple[float, ...]) -> Any:
    return keras.ops.convert_to_tensor(values, "float32")


def build_backbone(
    name: BackboneName,
    input_size: int,
    weights: Path | str | None = None,
    *,
    cut: str = LAST,
    intermediate: bool = False,
) -> keras.Model:
    """Build a backbone up to a cut.

    Args:
        name: A key of `BACKBONES`.
        input_size: Height and width in pixels.
        weights: None (random), "imagenet" (downloaded by Keras), or a weights file of the Keras application:
            `.weights.h5` or `.h5`, without its top unless the cut lies there.
        cut: A key of the backbone's `cuts`.
        intermediate: Whether the model has a second output: the map of the backbone's `intermediate` layer.

    Returns:
        A model from `(batch, input_size, input_size, 3)` float32 RGB in [-1, 1] to the feature map, or to both maps;
        scaling to the range of its ImageNet weights is its first layer. Its layers have the same names in every
        process.

    Raises:
        ModelError: The weights cannot be had, or are not this backbone's.
    """
    row = BACKBONES[name]
    taken = row.cuts[cut]
    image = keras.Input((input_size, input_size, 3), name="pixels")
    scaled = image if row.pixels == "symmetric" else PixelScaling(row.pixels, name="scaling")(image)
    full = _build_application(row, taken, input_size, input_tensor=scaled)
    if weights == "imagenet":
        # Some applications take ImageNet's weights at their own size only, whatever those depend on.
        full.set_weights(_download(row, taken).get_weights())
    elif weights is not None:
        _load(full, weights)
    named = _name_layers(full, keep=weights is not None)
    maps = [_feature_map(named, one) for one in (taken, *[row.intermediate] * intermediate)]
    return keras.Model(named.inputs[0], maps if intermediate else maps[0], name="backbone")


def freeze_first_blocks(model: keras.Model, name: BackboneName) -> None:
    """Keep the stem and the first blocks of a backbone as they are; whatever follows them trains."""
    last = model.get_layer(BACKBONES[name].frozen)
    first = {layer.name for layer in keras.Model(model.input, last.output).layers}
    for layer in model.layers:
        layer.trainable = layer.name not in first


def _build_application(row: Backbone, cut: Cut, size: int, weights: str | None = None, **options: Any) -> keras.Model:
    application: Any = getattr(keras.applications, row.application)
    return application(
        input_shape=(size, size, 3), include_top=cut.top, weights=weights, name="backbone", **row.options, **options
    )


def _download(row: Backbone, cut: Cut) -> keras.Model:
    try:
        return _build_application(row, cut, row.input_size, "imagenet")
    except Exception as error:  # Keras raises a plain Exception where it cannot download.
        if type(error) is not Exception:
            raise
        raise ModelError(
            f"ImageNet's weights of {row.application} cannot be downloaded: give a file of weights, or none."
        ) from error


def _load(full: keras.Model, weights: Path | str) -> None:
    try:
        with warnings.catch_warnings():
            # Keras warns of each part that it skips: none may stay at random weights.
            warnings.simplefilter("error", UserWarning)
            full.load_weights(str(weights))
    except (OSError, ValueError, KeyError, UserWarning) as error:
        raise ModelError("The weights file cannot be read, or holds another network's weights.") from error


def _feature_map(model: keras.Model, cut: Cut) -> Any:
    layer = model.get_layer(cut.layer)
    if not cut.activation:
        return layer.output
    (activation,) = {node.operation for node in layer._outbound_nodes}  # noqa: SLF001 - Keras has no public way on
    return activation.output


def _name_layers(model: keras.Model, *, keep: bool) -> keras.Model:
    """Name the layers that Keras numbers as the first model of a process has them.

    Keras counts on from model to model, so that an artifact's names would otherwise depend on what was built before
    it. Only InceptionResNetV2 has weights in such layers.

    Args:
        model: An application.
        keep: Whether its weights matter.
    """
    names = _first_names(model)
    if all(name == first for name, first in names.items()):
        return model

    def clone(layer: layers.Layer) -> layers.Layer:
        return layer.__class__.from_config({**layer.get_config(), "name": names[layer.name]})

    named = keras.models.clone_model(model, clone_function=clone)
    if keep:
        named.set_weights(model.get_weights())
    return named


def _first_names(model: keras.Model) -> dict[str, str]:
    found = {layer.name: _NUMBERED.fullmatch(layer.name) for layer in model.layers}
    numbers = {name: (match[1], int(match[2] or 0)) for name, match in found.items() if match}
    names = {name: name for name in found}
    for name, (kind, number) in numbers.items():
        first = number - min(other for same, other in numbers.values() if same == kind)
        names[name] = f"{kind}_{first}" if first else kind
    return names
