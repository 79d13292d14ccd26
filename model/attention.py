"""The soft-attention layer (Datta et al., arXiv 2105.03358; Nguyen, Bui & Do 2022, section 3.3)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="lesion_screen")
class SoftAttention(keras.layers.Layer):
    """Weighs a feature map by where its heads look.

    Each head scores every position with a 3x3 convolution and takes a softmax over the h*w positions; the heads'
    maps are added, and the feature map is multiplied by their sum and a learnable scalar gamma.

    Args:
        heads: Number of heads K; the map sums to K.

    Call returns:
        `(attended, map)`: `(batch, h, w, d)` and `(batch, h, w)`, both of the input's dtype.
    """

    def __init__(self, heads: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads
        self.scores = keras.layers.Conv2D(heads, 3, padding="same", name="scores")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the convolution and gamma for `(batch, h, w, d)` inputs."""
        self.scores.build(input_shape)
        self.gamma = self.add_weight(name="gamma", shape=(), initializer=keras.initializers.Constant(1.0))
        super().build(input_shape)

    def call(self, features: Any) -> tuple[Any, Any]:
        """Attend to `(batch, h, w, d)` features."""
        _, height, width, _ = features.shape
        scores = ops.reshape(self.scores(features), (-1, height * width, self.heads))
        # ops.softmax warns on a 1x1 map, where each head's map is rightly the constant 1.
        maps = ops.exp(scores - ops.logsumexp(scores, axis=1, keepdims=True))
        summed = ops.reshape(ops.sum(maps, axis=2), (-1, height, width))
        return self.gamma * summed[..., None] * features, summed

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[Any, Any]:
        """Return the shapes of the attended features and of the map."""
        return input_shape, input_shape[:-1]

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), "heads": self.heads}
