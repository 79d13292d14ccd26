"""Frozen-graph inference: the network and its calibration as one TensorFlow function of constants."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.batches import Batched, share_cores
from model.device import CPU_BATCH_SIZE, find_batch_size, prepare_device
from model.errors import OutOfMemory
from model.evidence import choose_evidence, with_evidence
from model.familiarity import FeatureSpace, Spaces
from model.precision import Precision

#: Posteriors, distances and evidence of some images.
Answer = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]


class Engine(Batched, Protocol):
    """What a classifier needs of whatever runs its network; `FrozenGraph` is the one that is always there."""

    @property
    def name(self) -> str:
        """What is stored with each result."""

    @property
    def device(self) -> str:
        """What it computes on, "gpu" or "cpu"."""

    @property
    def precision(self) -> Precision:
        """What it computes in."""

    def run(self, images: NDArray[np.uint8], metadata: NDArray[np.float32]) -> Answer:
        """Score a batch."""

    def fit_batch_size(self, image: NDArray[np.uint8], metadata: NDArray[np.float32]) -> None:
        """Find out how many images at once it does best with."""


class FrozenGraph:
    """Maps decoded images and encoded metadata to posteriors and distances.

    Freezing the variables into constants lets TensorFlow fold them, which is worth 6 to 30 % on CPU. The signature
    leaves the batch size open, so no size is traced twice. TensorFlow releases the GIL while it runs.

    Args:
        network: From `model.network.build_network`.
        input_size: Height and width in pixels.
        prior: `(7,)` class frequencies of the posterior.
        temperature: T of the posterior.
        spaces: Where the training images lie in what the network measures, see `model.familiarity`.
        precision: What the network was built to compute in, see `computing_in`.

    Attributes:
        batches_at_once: On a CPU see `model.batches.share_cores`; on a GPU 2, as it is idle while an answer is
            taken apart.
        name: Stored with each result: "tensorflow-frozen", with "-gpu" and the precision where it is not float32.
        device: "gpu" or "cpu".
        batch_size: How many images to give it at once; halved whenever so many do not fit.
    """

    def __init__(
        self,
        network: Any,
        *,
        input_size: int,
        prior: NDArray[np.float64],
        temperature: float,
        spaces: Spaces,
        precision: Precision = "float32",
    ) -> None:
        self.precision = precision
        self.device = prepare_device()
        parts = ("tensorflow-frozen", *["gpu"] * (self.device == "gpu"), *[precision] * (precision != "float32"))
        self.name = "-".join(parts)
        self.batch_size = CPU_BATCH_SIZE
        self.batches_at_once = 2 if self.device == "gpu" else share_cores()[0]
        self._function = _freeze(network, input_size, np.log(prior), temperature, spaces)

    def run(self, images: NDArray[np.uint8], metadata: NDArray[np.float32]) -> Answer:
        """Score a batch.

        Args:
            images: `(n, s, s, 3)` uint8 RGB.
            metadata: `(n, width)` float32, encoded as the network was built for.

        Returns:
            Posteriors `(n, 7)` float32, distances `(n,)` float32 from the images of training, and evidence
            `(n, h, w)` float32 for the diagnosis, see `model.evidence`, or None of a network without it.

        Raises:
            OutOfMemory: If not even one image fits.
        """
        size = len(images)
        while True:
            try:
                parts = [
                    self._run(images[start : start + size], metadata[start : start + size])
                    for start in range(0, len(images), size)
                ]
            except OutOfMemory:
                if size == 1:
                    raise
                # Somebody else may use the same device: what fitted at the start need not fit for ever.
                size = self.batch_size = min(self.batch_size, max(1, size // 2))
            else:
                return _join(parts)

    def _run(self, images: NDArray[np.uint8], metadata: NDArray[np.float32]) -> Answer:
        try:
            posteriors, distances, *evidence = self._function(tf.constant(images), tf.constant(metadata))
            return posteriors.numpy(), distances.numpy(), evidence[0].numpy() if evidence else None
        except tf.errors.ResourceExhaustedError:
            raise OutOfMemory(f"{len(images)} images at once do not fit the memory of the {self.device}.") from None

    def fingerprint(self) -> str:
        """Name what a conversion is made from.

        Returns:
            sha256 of the graph with its constants, and of the converter's and the engine's versions: another model,
            calibration, network code or library has another one.
        """
        from ai_edge_litert import __version__

        graph = self._function.graph.as_graph_def()
        # By numbers: Keras names layers by how many the process has had.
        numbers = {node.name: str(number) for number, node in enumerate(graph.node)}
        for node in graph.node:
            node.name = numbers[node.name]
            parts = [one.removeprefix("^").partition(":") for one in node.input]
            node.input[:] = ["".join((numbers[name], *output)) for name, *output in parts]
        constants = graph.SerializeToString(deterministic=True)
        return hashlib.sha256(f"{tf.__version__} {__version__} ".encode() + constants).hexdigest()

    def convert(self) -> bytes:
        """Convert the graph for LiteRT.

        Returns:
            A flatbuffer.

        Raises:
            ValueError: If it has an operation that LiteRT does not know.
        """
        # The second argument keeps variables alive, and there are none.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([self._function], tf.Module())
        flatbuffer: bytes = converter.convert()
        return flatbuffer

    def fit_batch_size(self, image: NDArray[np.uint8], metadata: NDArray[np.float32]) -> None:
        """Find out how many images at once a GPU does best with; on a CPU it is known.

        Args:
            image: `(s, s, 3)` uint8, any.
            metadata: `(width,)` float32, any.

        Raises:
            OutOfMemory: If not even one image fits.
        """
        if self.device == "gpu":
            self.batch_size = find_batch_size(
                lambda size: self._run(np.repeat(image[None], size, axis=0), np.repeat(metadata[None], size, axis=0))
            )


def _join(parts: Sequence[Answer]) -> Answer:
    evidence = [part[2] for part in parts if part[2] is not None]
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate(evidence) if evidence else None,
    )


def _freeze(network: Any, size: int, log_prior: NDArray[np.float64], temperature: float, spaces: Spaces) -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    extended = with_evidence(network)
    bias = tf.constant(log_prior, tf.float32)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, size, size, 3), tf.uint8),
            tf.TensorSpec((None, network.inputs[1].shape[1]), tf.float32),
        ]
    )
    def score(images: Any, metadata: Any) -> Any:
        pixels = tf.cast(images, tf.float32) / 127.5 - 1.0
        outputs = extended([pixels, metadata], training=False)
        posteriors = tf.nn.softmax(outputs["logits"] / temperature + bias)
        parts = [part for name, space in spaces.items() for part in _distance_parts(space, outputs[name])]
        distances = tf.sqrt(tf.add_n([tf.square(part) for part in parts]))
        return posteriors, distances, *choose_evidence(outputs).values()

    return convert_variables_to_constants_v2(score.get_concrete_function())


def _distance_parts(space: FeatureSpace, outputs: Any) -> list[Any]:
    """Compute `FeatureSpace.parts` in their units, `(n,)` each, of `(n, f)` outputs."""
    features, basis = tf.cast(outputs, tf.float32), tf.constant(space.basis(), tf.float32)
    offsets = features - space.mean
    gaps = tf.reduce_sum(tf.square(tf.matmul(offsets, space.projection)[:, None, :] - space.centres[None]), axis=2)
    outside = tf.reduce_sum(tf.square(offsets - tf.matmul(tf.matmul(offsets, basis), basis, transpose_b=True)), axis=1)
    parts = [tf.sqrt(tf.reduce_min(gaps, axis=1) + outside / space.residual) / space.scales[0]]
    if len(space.prototypes):
        cosines = tf.matmul(tf.math.l2_normalize(features, axis=1), space.prototypes, transpose_b=True)
        parts.append((1.0 - tf.reduce_max(cosines, axis=1)) / space.scales[1])
    return parts
