"""The soft-attention layer (Datta et al., arXiv 2105.03358; Nguyen, Bui & Do 2022, section 3.3)."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import layers, ops

#: `corrected` is the default; the other two are what the paper prints and what its notebooks compute.
AttentionForm = Literal["corrected", "as-published", "as-coded"]


@keras.saving.register_keras_serializable(package="lesion_screen")
class SoftAttention(layers.Layer):
    """Weighs a feature map by where its heads look.

    Each head scores every position with a convolution and takes a softmax over the h*w positions; the heads' maps are
    added, and the feature map is multiplied by their sum and a learnable scalar gamma.

    | form | scores | gamma | ReLU before the softmax |
    |---|---|---|---|
    | `corrected` | Conv2D 3x3 from d channels to K heads | yes | no |
    | `as-published` | Conv3D (3, 3, d) over (h, w, d): the same numbers as `corrected` | yes | no |
    | `as-coded` | Conv3D (d, 3, 3) with stride (1, 1, d): axes permuted, so it sees channels 0 to 2 only | no | yes |

    All three have 9*d*K + K parameters in their kernel and bias; d is at least 3.

    Args:
        heads: Number of heads K; the map sums to K.
        form: One of the three above.

    Call returns:
        `(attended, map)`: `(batch, h, w, d)` and `(batch, h, w)`, both of the input's dtype.
    """

    def __init__(self, heads: int = 16, form: AttentionForm = "corrected", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads
        self.form = form

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the convolution and gamma for `(batch, h, w, d)` inputs."""
        depth = input_shape[-1]
        if self.form == "corrected":
            self.scores = layers.Conv2D(self.heads, 3, padding="same", name="scores", dtype=self.dtype_policy)
            self.scores.build(input_shape)
        else:
            shape = (3, 3, depth) if self.form == "as-published" else (depth, 3, 3)
            self.kernel = self.add_weight(name="kernel", shape=(*shape, 1, self.heads), initializer="glorot_uniform")
            self.bias = self.add_weight(name="bias", shape=(self.heads,), initializer="zeros")
        self.gamma = None
        if self.form != "as-coded":
            self.gamma = self.add_weight(name="gamma", shape=(), initializer=keras.initializers.Constant(1.0))
        super().build(input_shape)

    def call(self, features: Any) -> tuple[Any, Any]:
        """Attend to `(batch, h, w, d)` features."""
        _, height, width, _ = features.shape
        scores = ops.reshape(self._score(features), (-1, height * width, self.heads))
        # ops.softmax warns on a 1x1 map, where each head's map is rightly the constant 1.
        maps = ops.exp(scores - ops.logsumexp(scores, axis=1, keepdims=True))
        summed = ops.reshape(ops.sum(maps, axis=2), (-1, height, width))
        weights = summed if self.gamma is None else self.gamma * summed
        return weights[..., None] * features, summed

    def _score(self, features: Any) -> Any:
        if self.form == "corrected":
            return self.scores(features)
        # A Conv3D with one step along its third axis is a Conv2D over that axis's first channels, and a thousand times
        # as slow on a CPU; there TensorFlow 2.21 also pads it against its own rule ("SAME" never pads by less than
        # nothing), so that the notebooks' form would see the channels in the middle.
        kernel = self.kernel[:, :, :, 0]
        if self.form == "as-published":
            return ops.conv(features, kernel, padding="same") + self.bias
        rows = _rows_that_meet(features.shape[1], kernel.shape[0])
        return ops.relu(ops.conv(features[..., :3], kernel[rows], padding="same") + self.bias)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[Any, Any]:
        """Return the shapes of the attended features and of the map."""
        return input_shape, input_shape[:-1]

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), "heads": self.heads, "form": self.form}


def _rows_that_meet(height: int, rows: int) -> slice:
    """Return the rows of a kernel that ever meet a map of so many rows, where both are centred."""
    first = (rows - 1) // 2 - (height - 1)
    last = first + 2 * height - 1
    return slice(first, last) if first >= 0 and last <= rows else slice(None)
