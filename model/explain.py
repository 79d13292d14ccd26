"""Explains a diagnosis by maps over the image: where soft attention looks, evidence, and Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.artifact import NetworkPart, read_manifest
from model.classifier import load_network
from model.evidence import choose_evidence, with_evidence
from model.images import decode_image, measure_image
from model.joining import fit_images, split_network, spread_places
from model.labels import CLASSES
from model.metadata import MetadataEncoding, PatientMetadata, encode_metadata
from model.pictures import spread_map

#: Longest side in pixels that an explained image is shown at.
SHOWN_PIXELS: Final = 480


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """Where a network looked in n images.

    Attributes:
        diagnoses: `(n,)` class indices: argmax of posterior / prior, which is that of the logits.
        attention: `(n, h, w)` float32, each summing to the number of heads; None for a network without attention.
        evidence: `(n, h, w)` float32 for the diagnosis, see `model.evidence`; None of a network without it.
        grad_cam: `(n, h, w)` float32, at least 0, for the diagnosis; of several networks, the sum of theirs.
    """

    diagnoses: NDArray[np.int64]
    attention: NDArray[np.float32] | None
    evidence: NDArray[np.float32] | None
    grad_cam: NDArray[np.float32]


class Explainer:
    """Maps images to where the network looked in them.

    Args:
        network: From `model.network.build_network`, with its weights.
        config: What it was built from.
    """

    def __init__(self, network: keras.Model, config: NetworkPart) -> None:
        self.config = config
        self._models = [_with_feature_map(one) for one in split_network(with_evidence(network))]
        self._trace = tf.function(self._explain)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load an artifact's network.

        Raises:
            ArtifactError: Anything about it is not what it claims.
        """
        manifest = read_manifest(folder)
        network, _ = load_network(folder, manifest)
        return cls(network, manifest.network)

    def explain(self, images: NDArray[np.uint8], patients: Sequence[PatientMetadata]) -> Maps:
        """Explain a batch.

        Args:
            images: `(n, s, s, 3)` uint8 RGB from `decode_image`, of the network's size.
            patients: n patients.
        """
        metadata = encode_metadata(patients, cast("MetadataEncoding", self.config.metadata))
        found = self._trace(tf.constant(images), tf.constant(metadata))
        return Maps(
            diagnoses=found["diagnoses"].numpy(),
            attention=found["attention"].numpy() if "attention" in found else None,
            evidence=found["evidence"].numpy() if "evidence" in found else None,
            grad_cam=found["grad_cam"].numpy(),
        )

    def _explain(self, images: Any, metadata: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            pixels = tf.cast(images, tf.float32) / 127.5 - 1.0
            tape.watch(pixels)
            outputs = [model(fit_images(model, [pixels, metadata]), training=False) for model in self._models]
            feature_maps = [one.pop("feature_map") for one in outputs]
            grid = tuple(feature_maps[0].shape[1:3])
            for one in outputs:
                one |= {name: spread_places(one[name], grid) for name in ("attention", "evidence") if name in one}
            said = {name: sum(one[name] for one in outputs) / len(outputs) for name in outputs[0]}
            diagnoses = tf.argmax(said["logits"], axis=1)
            # Each image's own logit; images do not touch each other, so the sum's gradient is each one's.
            asked = tf.reduce_sum(tf.gather(said["logits"], diagnoses, axis=1, batch_dims=1))
        gradients = tape.gradient(asked, feature_maps)
        # What the networks' maps speak for adds up as their logits do; each gradient is of the mean logit already.
        found = map(weigh_features, feature_maps, gradients)
        grad_cam = sum(spread_places(one, grid) for one in found)
        return {**said, **choose_evidence(said), "diagnoses": diagnoses, "grad_cam": grad_cam}


def _with_feature_map(network: keras.Model) -> keras.Model:
    # What attention and pooling both see: the backbone's last map, whatever the network's attention and head.
    feature_map = network.get_layer("pool_features").input
    wanted = [name for name in ("logits", "attention", "evidence") if name in network.output]
    outputs = {name: network.output[name] for name in wanted}
    return keras.Model(network.inputs, {"feature_map": feature_map, **outputs})


def weigh_features(feature_map: Any, gradient: Any) -> Any:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): ReLU of the channels, each weighed by its mean gradient.

    Args:
        feature_map: `(n, h, w, d)`.
        gradient: `(n, h, w, d)`, of a class's score before the softmax.

    Returns:
        `(n, h, w)`.
    """
    weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * feature_map, axis=3))


def decode_shown(data: bytes, longest: int = SHOWN_PIXELS) -> NDArray[np.uint8]:
    """Decode an image in its own proportions, its longest side at most so many pixels, for people to look at.

    Raises:
        RejectedImage: The bytes are no usable image.
    """
    width, height = measure_image(data)
    scale = min(1.0, longest / max(width, height))
    return decode_image(data, (max(1, round(width * scale)), max(1, round(height * scale))))


def explain_image(
    explainer: Explainer, data: bytes, patient: PatientMetadata
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
    """Explain one image for people to look at.

    Args:
        explainer: The model's.
        data: The image file's bytes.
        patient: Age, sex and site.

    Returns:
        The image `(height, width, 3)` uint8 in its own proportions, and `(height, width)` float32 maps in [0, 1] by
        title.

    Raises:
        RejectedImage: The bytes are no usable image.
    """
    maps = explainer.explain(decode_image(data, explainer.config.input_size)[None], [patient])
    pixels = decode_shown(data)
    diagnosis = CLASSES[int(maps.diagnoses[0])]
    heats = {
        f"{explainer.config.attention} soft attention": maps.attention,
        f"Evidence for {diagnosis}": maps.evidence,
        f"Grad-CAM of {diagnosis}": maps.grad_cam,
    }
    size = pixels.shape[1], pixels.shape[0]
    return pixels, {title: spread_map(heat[0], size) for title, heat in heats.items() if heat is not None}
