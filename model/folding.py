"""Training with BatchNorm folded into the convolutions: the same function, a sixth faster on a CPU.

Fine-tuning keeps ImageNet's batch statistics (in training mode these backbones' features on skin change almost
completely), so each BatchNorm behind a convolution is a fixed scale and shift: the convolution's kernel and a bias
can carry both, and a pass over the feature map is saved forward and backward.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers


@keras.saving.register_keras_serializable(package="lesion_screen")
class Folded(layers.Layer):
    """Stands where a BatchNorm stood whose scale and shift the convolution before it carries."""

    def call(self, features: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return `features` as they are."""
        del training, mask
        return features


def training_copy(network: keras.Model, *, fold: bool, any_size: bool = True) -> keras.Model:
    """Copy a network for training.

    Where `fold` is set, each BatchNorm of the backbone behind a convolution is folded into it. One that no
    convolution alone feeds (before an activation in DenseNet, say) stays, with ImageNet's statistics, scale and
    shift: it does not train.

    Args:
        network: From `model.network.build_network`; it is left as it is.
        fold: Whether to fold.
        any_size: Whether the copy takes images of any size; a head that flattens its maps cannot.

    Returns:
        A network of the same inputs and outputs in inference mode, to rounding, whose layers have the same names.
    """
    backbone = network.get_layer("backbone")
    copied = _copy_backbone(backbone, _foldable(backbone) if fold else {}, any_size=any_size)

    def clone(layer: layers.Layer) -> layers.Layer:
        return copied if layer is backbone else layer.__class__.from_config(layer.get_config())

    inputs = [_image_input(network.inputs[0], any_size=any_size), keras.Input(network.inputs[1].shape[1:])]
    copy = keras.models.clone_model(network, input_tensors=inputs, clone_function=clone)
    for layer in network.layers:
        if layer is not backbone and layer.weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def write_back(copy: keras.Model, network: keras.Model) -> None:
    """Write the weights of a training copy back.

    Each folded BatchNorm becomes the identity plus the convolution's bias, so that the network computes what the
    copy does.

    Args:
        copy: From `training_copy`, trained.
        network: The network it was made from; its weights are replaced.
    """
    for layer in network.layers:
        if layer.name != "backbone" and layer.weights:
            layer.set_weights(copy.get_layer(layer.name).get_weights())
    backbone, source = network.get_layer("backbone"), copy.get_layer("backbone")
    norms = {
        name: norm for name, norm in _foldable(backbone).items() if isinstance(source.get_layer(norm.name), Folded)
    }
    for layer in backbone.layers:
        if layer.name in norms:
            *kernels, bias = source.get_layer(layer.name).get_weights()
            norm = norms[layer.name]
            layer.set_weights([*kernels, np.zeros_like(bias)] if layer.use_bias else kernels)
            variance = np.asarray(norm.moving_variance)
            norm.set_weights([np.sqrt(variance + norm.epsilon), bias, np.zeros_like(bias), variance])
        elif layer.weights and layer not in norms.values():
            layer.set_weights(source.get_layer(layer.name).get_weights())


def _copy_backbone(
    backbone: keras.Model, norms: dict[str, layers.BatchNormalization], *, any_size: bool
) -> keras.Model:
    def clone(layer: layers.Layer) -> layers.Layer:
        if layer in norms.values():
            return Folded(name=layer.name)
        config = layer.get_config()
        if layer.name in norms:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    inputs = keras.tree.map_structure(lambda tensor: _image_input(tensor, any_size=any_size), backbone.input)
    copied = keras.models.clone_model(backbone, input_tensors=inputs, clone_function=clone)
    for layer in backbone.layers:
        if layer.name in norms:
            copied.get_layer(layer.name).set_weights(_carry(layer, norms[layer.name]))
        elif layer not in norms.values() and layer.weights:
            copied.get_layer(layer.name).set_weights(layer.get_weights())
    return copied


def _image_input(tensor: Any, *, any_size: bool) -> Any:
    return keras.Input((None, None, tensor.shape[-1]) if any_size else tensor.shape[1:])


def _foldable(backbone: keras.Model) -> dict[str, layers.BatchNormalization]:
    """Map each convolution to the BatchNorm that alone follows it."""
    found = {}
    for norm in backbone.layers:
        if not isinstance(norm, layers.BatchNormalization) or not (norm.scale and norm.center):
            continue
        (source,) = norm._inbound_nodes[0].parent_nodes  # noqa: SLF001 - Keras has no public way to walk its graph
        convolution = source.operation
        simple = type(convolution) in (layers.Conv2D, layers.DepthwiseConv2D)
        if simple and len(convolution._outbound_nodes) == 1:  # noqa: SLF001 - as above
            found[convolution.name] = norm
    return found


def _carry(convolution: layers.Layer, norm: layers.BatchNormalization) -> list[Any]:
    gamma, beta, mean, variance = norm.get_weights()
    scale = gamma / np.sqrt(variance + norm.epsilon)
    kernel, *bias = convolution.get_weights()
    # A depthwise kernel is (height, width, channels, 1): its output channel is its third axis.
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    kernel = kernel * (scale[:, None] if depthwise else scale)
    return [kernel, beta + ((bias[0] if bias else 0.0) - mean) * scale]
