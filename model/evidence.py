"""Evidence: how much each place of an image speaks for a class, as the network adds it up.

Where a head averages its maps over their places and adds the averages up with a class's weights, a logit is a sum over
places, but for the metadata's share and the bias: evidence is what each place puts into it. This is class activation
mapping (Zhou et al. 2016, equation 2), with the map that soft attention has weighed beside the plain one.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from model.joining import join_networks, split_network


def with_evidence(network: keras.Model) -> keras.Model:
    """Give a network one more output, `evidence` `(n, h, w, 7)` float32; of several networks, the mean of theirs.

    Args:
        network: From `model.network.build_network`.

    Returns:
        A model that shares the network's variables; the network itself where its head does not add up places: one
        that flattens its maps, or has a layer between them and the classifier.
    """
    members = split_network(network)
    if not all(_adds_up_places(one) for one in members):
        return network
    return join_networks([_extend(one) for one in members])


def _adds_up_places(network: keras.Model) -> bool:
    averages = isinstance(network.get_layer("pool_features"), keras.layers.GlobalAveragePooling2D)
    return averages and "hidden" not in {layer.name for layer in network.layers}


def _extend(network: keras.Model) -> keras.Model:
    layers = {layer.name: layer for layer in network.layers}
    maps = [layers[name].input for name in ("pool_features", "pool_attended") if name in layers]
    # A feature that the ReLU behind the pooling stops adds nothing.
    passes = ops.cast(layers["pooled_relu"].output > 0, "float32")
    kernel, start, total = layers["classifier"].kernel, 0, 0.0
    for one in maps:
        _, height, width, depth = one.shape
        weights = passes[:, start : start + depth, None] * kernel[start : start + depth]
        total += ops.matmul(ops.reshape(ops.cast(one, "float32"), (-1, height * width, depth)), weights)
        start += depth
    evidence = ops.reshape(total / (height * width), (-1, height, width, kernel.shape[-1]))
    return keras.Model(network.inputs, {**network.output, "evidence": evidence}, name=network.name)


def choose_evidence(outputs: dict[str, Any]) -> dict[str, Any]:
    """Take the evidence for each image's own diagnosis, the class of its largest logit.

    Args:
        outputs: What a model from `with_evidence` returned.

    Returns:
        `{"evidence": (n, h, w)}`, or nothing of a network without.
    """
    if "evidence" not in outputs:
        return {}
    logits, evidence = outputs["logits"], outputs["evidence"]
    # Of TensorFlow's own: LiteRT cannot compute what Keras makes of an argmax.
    chosen = tf.one_hot(tf.argmax(logits, axis=1), logits.shape[-1])
    return {"evidence": tf.reduce_sum(evidence * chosen[:, None, None, :], axis=-1)}
