"""What a network costs: parameters, and multiply-adds an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import tensorflow as tf
from pydantic import BaseModel, ConfigDict

from model.backbones import BACKBONES
from model.network import NetworkConfig, build_network

#: Axes of the weights that one output value sums over: (height, width, channels[, ...]) of a kernel, rows of a matrix.
#: A depthwise kernel is (height, width, channels, multiplier) and sums over one channel.
_SUMMED: Final[dict[str, Callable[[tuple[int, ...]], int]]] = {
    "Conv2D": lambda kernel: math.prod(kernel[:3]),
    "Conv3D": lambda kernel: math.prod(kernel[:4]),
    "DepthwiseConv2dNative": lambda kernel: math.prod(kernel[:2]),
    "MatMul": lambda matrix: matrix[0],
}


class NetworkSummary(BaseModel):
    """A network in figures.

    Attributes:
        backbone: Name of the backbone.
        cut: Layer whose output is the feature map.
        cut_name: The cut's name among the backbone's cuts.
        feature_map: `(h, w, d)` of the map the attention sees.
        input_size: Height and width of the image in pixels.
        attention: Form of the attention, or "none".
        metadata: Metadata branch, or "none".
        head: "pooled" or "flatten".
        parameters: All weights, those that do not train among them.
        multiply_adds: Of the convolutions and dense layers, an image; batch norm, activations and pooling are left
            out, as the papers of these networks leave them out.
        flops: Two a multiply-add.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    cut: str
    cut_name: str
    feature_map: tuple[int, int, int]
    input_size: int
    attention: str
    metadata: str
    head: str
    parameters: int
    multiply_adds: int
    flops: int


def summarise_network(config: NetworkConfig) -> NetworkSummary:
    """Build a network with random weights and count.

    Args:
        config: Architecture.
    """
    network = build_network(config)
    multiply_adds = count_multiply_adds(network)
    return NetworkSummary(
        backbone=config.backbone,
        cut=str(BACKBONES[config.backbone].cuts[config.cut]),
        cut_name=config.cut,
        feature_map=tuple(network.get_layer("backbone").output.shape[1:]),
        input_size=config.input_size,
        attention=config.attention,
        metadata=config.metadata,
        head=config.head,
        parameters=network.count_params(),
        multiply_adds=multiply_adds,
        flops=2 * multiply_adds,
    )


def count_multiply_adds(network: Any) -> int:
    """Count the multiply-adds of one image in the graph that computes it.

    Args:
        network: From `model.network.build_network`, or any other Keras model.
    """
    specs = tf.nest.map_structure(lambda one: tf.TensorSpec((1, *one.shape[1:]), tf.float32), network.input)
    graph = tf.function(lambda inputs: network(inputs, training=False)).get_concrete_function(specs).graph
    return sum(_multiply_adds(operation) for operation in graph.get_operations() if operation.type in _SUMMED)


def _multiply_adds(operation: Any) -> int:
    weights = tuple(operation.inputs[1].shape)
    return math.prod(operation.outputs[0].shape) * _SUMMED[operation.type](weights)
