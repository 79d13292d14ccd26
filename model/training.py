"""Training: balanced softmax on cached images, with a checkpoint each epoch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.backbones import freeze_first_blocks
from model.labels import CLASSES
from model.metadata import mask_metadata
from model.network import NetworkConfig, build_network

CHECKPOINT: Final = "checkpoint.npz"
CURVES: Final = "curves.jsonl"


class TrainingConfig(BaseModel):
    """The recipe.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        learning_rate: Peak rate of the backbone; the head takes `head_factor` times that.
        head_factor: Rate of the head against the backbone's.
        warmup_steps: Linear rise to the peak; a cosine then falls to 1e-6.
        weight_decay: Decoupled decay (AdamW).
        clip_norm: Global gradient norm.
        smoothing: Label smoothing.
        ema: Decay of the averaged weights a step; the averaged weights are the result.
        statistics_batches: Batches the BatchNorm statistics are estimated from once the weights are averaged.
        seed: Seed of every random choice; (seed, epoch) fixes an epoch, so that a resumed run repeats it exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = 16
    batch_size: int = 32
    learning_rate: float = 3e-4
    head_factor: float = 5.0
    warmup_steps: int = 300
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    smoothing: float = 0.05
    ema: float = 0.999
    statistics_batches: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Images with what is known of them, in memory.

    Attributes:
        images: `(n, 225, 300, 3)` uint8 RGB.
        metadata: `(n, WIDTH)` float32 from `encode_metadata`.
        labels: `(n,)` int64 class indices.
    """

    images: NDArray[np.uint8]
    metadata: NDArray[np.float32]
    labels: NDArray[np.int64]

    def prior(self) -> NDArray[np.float64]:
        """Class frequencies, `(7,)`, each at least one image's share."""
        counts = np.maximum(np.bincount(self.labels, minlength=len(CLASSES)), 1)
        return counts / counts.sum()


def random_views(generator: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw crops and colour changes for `count` images.

    Returns:
        Boxes `(count, 4)` float32 as `crop_and_resize` takes them (area 0.5 to 1, aspect 3/4 to 4/3, flipped both
        ways at random), and colour matrices `(count, 3, 3)` float32: brightness, saturation and a per-channel gain.
    """
    area = generator.uniform(0.5, 1.0, count)
    aspect = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), count))
    height = np.minimum(np.sqrt(area / aspect), 1.0)
    width = np.minimum(np.sqrt(area * aspect), 1.0)
    top = generator.uniform(0.0, 1.0 - height)
    left = generator.uniform(0.0, 1.0 - width)
    rows = np.stack([top, top + height], axis=1)
    columns = np.stack([left, left + width], axis=1)
    flips = generator.integers(0, 2, (2, count)).astype(bool)
    rows[flips[0]] = rows[flips[0], ::-1]
    columns[flips[1]] = columns[flips[1], ::-1]
    boxes = np.stack([rows[:, 0], columns[:, 0], rows[:, 1], columns[:, 1]], axis=1)
    brightness = generator.uniform(0.85, 1.15, count)[:, None, None]
    saturation = generator.uniform(0.8, 1.2, count)[:, None, None]
    gains = generator.uniform(0.93, 1.07, (count, 1, 3))
    grey = np.full((3, 3), 1 / 3)
    colours = brightness * (saturation * np.eye(3) + (1 - saturation) * grey) * gains
    return boxes.astype(np.float32), colours.astype(np.float32)


class Trainer:
    """One training run in its folder; `run` goes on from the last checkpoint.

    Args:
        network: Architecture.
        config: Recipe.
        data: Training rows.
        weights: Backbone weights, see `build_backbone`.
        folder: Where the checkpoint and the curves are written.
    """

    def __init__(
        self,
        network: NetworkConfig,
        config: TrainingConfig,
        data: TrainingSet,
        weights: Path | str | None,
        folder: Path,
    ) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.input_size = network.input_size
        self.model = build_network(network, weights)
        backbone = self.model.get_layer("backbone")
        freeze_first_blocks(backbone, network.backbone)
        self.backbone_variables = backbone.trainable_variables
        ours = {id(v) for v in self.backbone_variables}
        self.head_variables = [v for v in self.model.trainable_variables if id(v) not in ours]
        self.averages = [tf.Variable(v.value, trainable=False) for v in self._trained()]
        self.steps_an_epoch = len(data.labels) // config.batch_size
        self.optimizers = [self._optimizer(1.0), self._optimizer(config.head_factor)]
        for optimizer, variables in zip(self.optimizers, (self.backbone_variables, self.head_variables), strict=True):
            optimizer.build(variables)
        self.log_prior = tf.constant(np.log(data.prior()), tf.float32)
        self.epoch = 0
        self._step = tf.function(self._train_step)

    def _trained(self) -> list[Any]:
        return [*self.backbone_variables, *self.head_variables]

    def _optimizer(self, factor: float) -> Any:
        steps = self.steps_an_epoch * self.config.epochs
        peak = self.config.learning_rate * factor
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0,
            max(steps - self.config.warmup_steps, 1),
            alpha=1e-6 / peak,
            warmup_target=peak,
            warmup_steps=self.config.warmup_steps,
        )
        return keras.optimizers.AdamW(schedule, weight_decay=self.config.weight_decay, epsilon=1e-7)

    def _train_step(self, images: Any, metadata: Any, labels: Any, boxes: Any, colours: Any, turned: Any) -> Any:
        size = self.input_size
        views = tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), (size, size))
        views = tf.cond(turned, lambda: tf.transpose(views, [0, 2, 1, 3]), lambda: views)
        views = tf.einsum("nhwc,ncd->nhwd", views, colours)
        views = tf.clip_by_value(views, 0.0, 255.0) / 127.5 - 1.0
        smoothing = self.config.smoothing
        targets = tf.one_hot(labels, len(CLASSES)) * (1.0 - smoothing) + smoothing / len(CLASSES)
        with tf.GradientTape() as tape:
            logits = self.model([views, metadata], training=True)["logits"] + self.log_prior
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        variables = self._trained()
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, [v.value for v in variables]), self.config.clip_norm)
        cut = len(self.backbone_variables)
        self.optimizers[0].apply(gradients[:cut], self.backbone_variables)
        self.optimizers[1].apply(gradients[cut:], self.head_variables)
        # Early on the average follows closely, so that the random head does not linger in it.
        step = tf.cast(self.optimizers[0].iterations.value, tf.float32)
        decay = tf.minimum(self.config.ema, (1.0 + step) / (10.0 + step))
        for average, variable in zip(self.averages, variables, strict=True):
            average.assign(decay * average + (1.0 - decay) * variable.value)
        return loss

    def run(self, report: Callable[[dict[str, float]], None], *, until: Callable[[], bool] = lambda: False) -> None:
        """Train to the last epoch, with a checkpoint after each.

        Args:
            report: Called after each epoch with its number, loss and seconds.
            until: Asked after each epoch; True stops the run early, to be resumed later.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._restore()
        while self.epoch < self.config.epochs and not until():
            started = time.monotonic()
            losses = [self._step(*batch) for batch in self._batches()]
            self.epoch += 1
            self._save()
            row = {
                "epoch": self.epoch,
                "loss": float(np.mean([float(loss) for loss in losses])),
                "seconds": time.monotonic() - started,
            }
            with (self.folder / CURVES).open("a", encoding="utf-8") as curves:
                curves.write(json.dumps(row) + "\n")
            report(row)
        self._take_averages()
        self._estimate_statistics()

    def _batches(self) -> Iterator[tuple[Any, ...]]:
        generator = np.random.default_rng([self.config.seed, self.epoch])
        order = generator.permutation(len(self.data.labels))
        size = self.config.batch_size
        for step in range(self.steps_an_epoch):
            rows = np.sort(order[step * size : (step + 1) * size])
            boxes, colours = random_views(generator, len(rows))
            metadata = mask_metadata(self.data.metadata[rows], generator)
            yield (
                tf.constant(self.data.images[rows]),
                tf.constant(metadata),
                tf.constant(self.data.labels[rows]),
                tf.constant(boxes),
                tf.constant(colours),
                tf.constant(bool(generator.integers(0, 2))),
            )

    def _state(self) -> list[Any]:
        optimizers = [v.value for optimizer in self.optimizers for v in optimizer.variables]
        return [*(v.value for v in self._trained()), *self.averages, *optimizers]

    def _save(self) -> None:
        path = self.folder / CHECKPOINT
        temporary = path.with_suffix(".partial")
        with temporary.open("wb") as file:
            arrays = {f"v{index}": value.numpy() for index, value in enumerate(self._state())}
            np.savez(file, epoch=self.epoch, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        with np.load(path, allow_pickle=False) as saved:
            self.epoch = int(saved["epoch"])
            for index, value in enumerate(self._state()):
                value.assign(saved[f"v{index}"])

    def start_averages(self) -> None:
        """Let the averaged weights start at the present ones, after weights were loaded from elsewhere."""
        for average, variable in zip(self.averages, self._trained(), strict=True):
            average.assign(variable.value)

    def _take_averages(self) -> None:
        for average, variable in zip(self.averages, self._trained(), strict=True):
            variable.assign(average)

    def _estimate_statistics(self) -> None:
        # BatchNorm of the trainable blocks follows each batch while training. ImageNet's statistics do not fit skin,
        # and running ones belong to the weights before averaging: on held-out lesions they cost 4 points of balanced
        # accuracy against statistics of whole training images under the final weights.
        backbone = self.model.get_layer("backbone")
        layers = [one for one in backbone.layers if isinstance(one, keras.layers.BatchNormalization) and one.trainable]
        order = np.random.default_rng(self.config.seed).permutation(len(self.data.labels))
        size = (self.input_size, self.input_size)
        for step in range(min(self.config.statistics_batches, self.steps_an_epoch)):
            rows = np.sort(order[step * self.config.batch_size : (step + 1) * self.config.batch_size])
            # A running mean with this momentum is the plain mean of all batches so far.
            for layer in layers:
                layer.momentum = step / (step + 1)
            backbone(tf.image.resize(self.data.images[rows], size) / 127.5 - 1.0, training=True)
