"""Networks that were trained apart and speak as one, each on images and maps of its own size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from model.familiarity import MEASURED

#: What joined networks are called, by their order; more than these do not speak as one.
ORDER: Final = ("first", "second", "third", "fourth")
#: Keras wants names of layers to differ, and two networks may be of one backbone.
_NAMES: Final = tuple(f"{order}_network" for order in ORDER)
#: What is said of each place of an image, and adds up over them.
_MAPS: Final = ("attention", "evidence")


def join_networks(networks: Sequence[keras.Model]) -> keras.Model:
    """Join networks into one that means what they mean: one network is that already.

    Args:
        networks: From `model.network.build_network`, as many as `ORDER` names at most. The first takes images as they
            come and says what places there are; the others see smaller ones. Several are named by their order.

    Returns:
        A model of the first's inputs and outputs: what distances are measured by, `features` and `intermediate`, is the
        first's, and all else the mean over the networks. It has the networks themselves as layers.
    """
    if len(networks) == 1:
        return networks[0]
    for name, one in zip(_NAMES, networks, strict=False):
        one.name = name
    first = networks[0]
    inputs = [keras.Input(one.shape[1:], name=one.name) for one in first.inputs]
    said = [network(fit_images(network, inputs)) for network in networks]
    for name in _MAPS:
        for one in said[1:] if name in first.output else ():
            one[name] = spread_places(one[name], tuple(first.output[name].shape[1:3]))
    outputs = {
        name: layers.Average(name=f"mean_{name}", dtype="float32")([one[name] for one in said])
        for name in ("logits", *_MAPS)
        if name in first.output
    }
    measured = {name: said[0][name] for name in MEASURED if name in said[0]}
    return keras.Model(inputs, {**outputs, **measured}, name="joined_networks")


def split_network(network: keras.Model) -> list[keras.Model]:
    """Return the networks that `join_networks` joined, in their order, or the network itself."""
    named = {layer.name: layer for layer in network.layers}
    return [named[name] for name in _NAMES if name in named] or [network]


def fit_images(network: keras.Model, inputs: Sequence[Any]) -> list[Any]:
    """Bring images to a network's size, by bilinear interpolation.

    It does not blur what it shrinks, as training does not: MobileNet at 224 pixels, shown images of 288, loses less of
    its balanced log loss on HAM10000's fold 1 than with an antialiased filter (0.655 and 0.682; 0.640 where they were
    decoded at 224).

    Args:
        network: From `model.network.build_network`.
        inputs: Images `(n, s, s, 3)`, and whatever else it takes.

    Returns:
        The same, with images `(n, t, t, 3)`.
    """
    images, *others = inputs
    size = tuple(network.inputs[0].shape[1:3])
    return [images if tuple(images.shape[1:3]) == size else ops.image.resize(images, size), *others]


def spread_places(maps: Any, grid: tuple[int, int]) -> Any:
    """Lay maps over other places: each place's share goes to those that it overlaps, so that their sum stays.

    Args:
        maps: `(n, h, w)` or `(n, h, w, c)`.
        grid: Height and width of the places wanted.

    Returns:
        `(n, *grid)` or `(n, *grid, c)`.
    """
    _, height, width, *depth = maps.shape
    if (height, width) == grid:
        return maps
    channels = math.prod(depth)
    # As products of matrices, which every engine computes.
    rows = ops.matmul(_overlaps(height, grid[0]), ops.reshape(maps, (-1, height, width * channels)))
    spread = ops.matmul(_overlaps(width, grid[1]), ops.reshape(rows, (-1, grid[0], width, channels)))
    return ops.reshape(spread, (-1, *grid, *depth))


def _overlaps(old: int, new: int) -> NDArray[np.float32]:
    """How much of each of `old` places lies in each of `new` ones, `(new, old)`, along one side of an image."""
    edges = np.linspace(0, 1, old + 1)
    starts, ends = np.linspace(0, 1, new + 1)[:-1, None], np.linspace(0, 1, new + 1)[1:, None]
    shared = np.clip(np.minimum(ends, edges[1:]) - np.maximum(starts, edges[:-1]), 0, None)
    return (shared * old).astype(np.float32)
