"""What a network costs: parameters, and multiply-adds an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import keras
import tensorflow as tf
from pydantic import BaseModel, ConfigDict

from model.architectures import paper_network
from model.backbones import BACKBONES, BackboneName
from model.joining import split_network
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
        backbone: Name of the backbone, or of all where several networks are joined.
        cut: Layer whose output is the feature map.
        cut_name: The cut's name among the backbone's cuts.
        feature_map: `(h, w, d)` of the map that the attention sees, the first's.
        input_size: Height and width of the image in pixels; networks beside the first may see smaller ones.
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
        backbone=config.backbones,
        cut=str(BACKBONES[config.backbone].cuts[config.cut]),
        cut_name=config.cut,
        feature_map=tuple(split_network(network)[0].get_layer("pool_features").input.shape[1:]),
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


class NetworkSize(BaseModel):
    """What a network weighs.

    Attributes:
        megabytes: Of the ImageNet network with its classifier, four bytes a parameter, in units of 2^20.
        millions: Its parameters.
        depth: Its layers that have weights: what Keras's documentation counts.
        ours: Parameters, in millions, of the network that we train: cut, with soft attention and metadata.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    megabytes: float
    millions: float
    depth: int
    ours: float


def weigh_network(backbone: BackboneName) -> NetworkSize:
    """Build a network twice, as ImageNet's and as ours, and count."""
    row = BACKBONES[backbone]
    full = getattr(keras.applications, row.application)(weights=None, **row.options)
    parameters = full.count_params()
    network = paper_network(backbone)
    return NetworkSize(
        megabytes=4 * parameters / 2**20,
        millions=parameters / 1e6,
        depth=sum(bool(layer.weights) for layer in full.layers),
        ours=build_network(network).count_params() / 1e6,
    )
