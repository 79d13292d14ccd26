"""Training on images in memory, with a checkpoint each epoch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.artifact import read_manifest
from model.augmentation import AUGMENTATIONS, resize
from model.backbones import freeze_first_blocks
from model.classifier import load_network
from model.errors import ModelError, TrainingDiverged
from model.folding import training_copy, write_back
from model.joining import split_network
from model.labels import CLASSES
from model.losses import balanced_weights, class_prior, cross_entropy, prior_free_offset
from model.metadata import MetadataEncoding, mask_metadata
from model.network import NetworkConfig, build_network, fit_age, shift_logits
from model.precision import Precision
from model.schedules import Plateau, cosine_rate
from model.steps import Batch, Learner, steps_of

CHECKPOINT: Final = "checkpoint.npz"
CURVES: Final = "curves.jsonl"
#: Largest momentum of batch statistics whose averages are kept.
STATISTICS_MOMENTUM: Final = 0.99


class Stage(BaseModel):
    """Epochs at one image size: the first ones learn as well from small images, at a fraction of the cost.

    Attributes:
        epochs: Passes over the training images.
        size: Height and width in pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int
    size: int


class TrainingConfig(BaseModel):
    """How a network is trained; `model.recipes` names the ones in use.

    Attributes:
        stages: Epochs and the image size they are shown at, in turn.
        batch_size: Images a step.
        images_an_epoch: None for every image once; more draws the rest from the classes other than nv, each class as
            likely as another.
        learning_rate: Peak rate of the backbone; the head takes `head_factor` times that. Folded convolutions
            (`batch_norm` "frozen") bear little, 6e-5 with a factor of 15: on HAM10000's fold 0 at 128 pixels, three
            epochs at 5e-5 reached a macro AUC of .951, while at 6e-4 every feature died in the first epoch.
        head_factor: Rate of the head against the backbone's.
        schedule: "cosine" with `warmup_steps`, or the notebooks' "plateau" on the validation loss.
        warmup_steps: Linear rise to the peak.
        epsilon: Adam's. At 0.1 (the paper's) the steps depend on the scale of the loss, at 1e-7 they do not.
        weight_decay: Decoupled decay (AdamW).
        clip_norm: Global gradient norm; None leaves gradients alone.
        loss: "balanced-softmax", or "weighted" cross-entropy.
        class_weights: Weights of the weighted loss; None takes W_c of the training rows.
        smoothing: Label smoothing: the share of each target that is spread over the classes.
        smooth_to: How it is spread. "prior" is as frequent as the classes are, which under the balanced softmax makes
            none likelier than another. "uniform" is alike (Szegedy et al. 2016, section 7), which makes a rare class
            likelier than a common one wherever the network is sure: at 0.05, what is a nevus beyond doubt may be no
            more than 2.3 times as likely a nevus as a dermatofibroma, once frequencies are taken out.
        ema: Decay of the averaged weights and batch statistics a step, which are the result; 0 takes the last ones.
        batch_norm: "frozen" keeps ImageNet's statistics, folded into the convolutions; "trained" follows each batch.
        freeze_first_blocks: Whether the stem and first blocks stay as ImageNet made them.
        augmentation: A key of `model.augmentation.AUGMENTATIONS`.
        mask_metadata: Whether metadata fields are hidden at random, so that their absence means nothing.
        precision: What the network computes in while it trains: bfloat16 is faster on accelerators, slower elsewhere.
        kept_size: Width and height at which images are kept in memory.
        drop_missing_ages: Whether rows without an age are left out of training (the paper's way).
        seed: Seed of every random choice; (seed, epoch) fixes an epoch, so that a resumed run repeats it. Networks
            that differ in nothing else take the next ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...] = (Stage(epochs=7, size=128), Stage(epochs=6, size=192), Stage(epochs=4, size=288))
    batch_size: int = 32
    images_an_epoch: int | None = None
    learning_rate: float = 4e-4
    head_factor: float = 4.0
    schedule: Literal["cosine", "plateau"] = "cosine"
    warmup_steps: int = 300
    epsilon: float = 1e-7
    weight_decay: float = 0.02
    clip_norm: float | None = 1.0
    loss: Literal["balanced-softmax", "weighted"] = "balanced-softmax"
    class_weights: tuple[float, ...] | None = None
    smoothing: float = 0.05
    smooth_to: Literal["uniform", "prior"] = "prior"
    ema: float = 0.999
    batch_norm: Literal["frozen", "trained"] = "trained"
    freeze_first_blocks: bool = False
    augmentation: Literal["none", "crops", "turns", "affine"] = "turns"
    mask_metadata: bool = True
    precision: Precision = "float32"
    kept_size: tuple[int, int] = (400, 300)
    drop_missing_ages: bool = False
    seed: int = 0

    @property
    def sizes(self) -> list[int]:
        """Height and width of each epoch's images."""
        return [stage.size for stage in self.stages for _ in range(stage.epochs)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Images with what is known of them, in memory.

    Attributes:
        images: `(n, height, width, 3)` uint8 RGB.
        metadata: `(n, width)` float32 from `encode_metadata`, in the network's encoding.
        labels: `(n,)` int64 class indices.
    """

    images: NDArray[np.uint8]
    metadata: NDArray[np.float32]
    labels: NDArray[np.int64]

    def prior(self) -> NDArray[np.float64]:
        """Class frequencies, `(7,)`, each at least one image's share."""
        return class_prior(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Epochs done.
        epochs: Epochs in all.
        step: Steps done in the present epoch.
        steps: Steps of an epoch.
        row: At an epoch's end, its line of the learning curve.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    row: dict[str, float] | None = None


class Trainer:
    """One training run in its folder; `run` goes on from the last checkpoint.

    Args:
        network: Architecture.
        config: Recipe.
        data: Training rows.
        weights: Backbone weights, see `build_backbone`; or the folder of a model to go on from.
        folder: Where the checkpoint and the curves are written.
        validation: Rows the validation loss is computed on each epoch; the plateau schedule needs them.
        order: Which of several networks beside each other this is, from 0: it goes on from that of a model of several.

    Raises:
        ModelError: The weights are not this network's.
    """

    def __init__(
        self,
        network: NetworkConfig,
        config: TrainingConfig,
        data: TrainingSet,
        weights: Path | str | None,
        folder: Path,
        validation: TrainingSet | None = None,
        *,
        order: int = 0,
    ) -> None:
        self.config, self.data, self.folder, self.validation = config, data, folder, validation
        keras.utils.set_random_seed(config.seed)
        self.model = _start(network, weights, order)
        fit_age(self.model, data.metadata)
        self._encoding: MetadataEncoding = network.metadata
        self._copy = training_copy(
            self.model,
            fold=config.batch_norm == "frozen",
            any_size=network.head == "pooled",
            precision=config.precision,
        )
        backbone = self._copy.get_layer("backbone")
        if config.freeze_first_blocks:
            freeze_first_blocks(backbone, network.backbone)
        if config.batch_norm == "frozen":
            for layer in _norms(backbone):
                # Those that could not be folded keep ImageNet's statistics as well: frozen is inference mode to Keras.
                layer.trainable = False
        elif config.ema:
            for layer in _norms(backbone):
                # MobileNetV2's own .999 would follow the weights a thousand steps late.
                layer.momentum = min(layer.momentum, STATISTICS_MOMENTUM)
        self._shift, self._weights = self._loss_terms()
        self.learner = self._make_learner(backbone)
        self.steps = steps_of(self.learner)
        self.steps_an_epoch = max((config.images_an_epoch or len(data.labels)) // config.batch_size, 1)
        self.plateau = Plateau(rate=config.learning_rate)
        self.epoch = 0

    def _make_learner(self, backbone: keras.Model) -> Learner:
        config = self.config
        ours = {id(v) for v in backbone.trainable_variables}
        head = [v for v in self._copy.trainable_variables if id(v) not in ours]
        groups = (backbone.trainable_variables, head)
        optimizers = tuple(
            keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay, epsilon=config.epsilon)
            for _ in groups
        )
        for optimizer, variables in zip(optimizers, groups, strict=True):
            optimizer.build(variables)
        # Statistics belong to the weights they were taken with: under averaged weights they are averages as well.
        averaged = [*groups[0], *groups[1], *(v for v in self._copy.non_trainable_variables if "moving_" in v.name)]
        return Learner(
            network=self._copy,
            groups=groups,
            optimizers=optimizers,
            averaged=averaged,
            # Of a copy: Keras would take TensorFlow's variable itself for its own.
            averages=[keras.Variable(_values(v), trainable=False) for v in averaged if config.ema],
            decay=config.ema,
            clip_norm=config.clip_norm,
            loss=lambda outputs, labels: self._loss(outputs, labels, self._spread()),
            augmentation=AUGMENTATIONS[config.augmentation],
            images=self.data.images,
        )

    def _loss_terms(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.config.loss == "balanced-softmax":
            return np.log(self.data.prior()), np.ones(len(CLASSES))
        weights = self.config.class_weights
        return np.zeros(len(CLASSES)), np.array(weights) if weights else balanced_weights(self.data.labels)

    def _spread(self) -> NDArray[np.float64]:
        even = np.full(len(CLASSES), 1 / len(CLASSES))
        return self.config.smoothing * (self.data.prior() if self.config.smooth_to == "prior" else even)

    def _loss(self, outputs: Any, labels: Any, spread: NDArray[np.float64] | None = None) -> Any:
        return cross_entropy(outputs["logits"], labels, shift=self._shift, weights=self._weights, spread=spread)

    def run(self, report: Callable[[Progress], None], *, until: Callable[[], bool] = lambda: False) -> None:
        """Train to the last epoch, with a checkpoint after each; then `model` holds the result.

        Args:
            report: Called after each step, and after each epoch with its row: epoch, loss, seconds and, with
                validation rows, validation_loss.
            until: Asked after each epoch; True stops the run early, to be resumed later.

        Raises:
            TrainingDiverged: The loss of an epoch is no number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._restore()
        epochs = len(self.config.sizes)
        while self.epoch < epochs and not self.plateau.stopped and not until():
            row = self._run_epoch(report)
            with (self.folder / CURVES).open("a", encoding="utf-8") as curves:
                curves.write(json.dumps(row) + "\n")
            report(Progress(epoch=self.epoch, epochs=epochs, step=0, steps=self.steps_an_epoch, row=row))
        self._finish()

    def _run_epoch(self, report: Callable[[Progress], None]) -> dict[str, float]:
        started = time.monotonic()
        size, epochs = self.config.sizes[self.epoch], len(self.config.sizes)
        losses = []
        self.steps.start()
        for step, batch in enumerate(self._batches()):
            losses.append(self.steps.take(size, batch, self._rates(self.epoch * self.steps_an_epoch + step)))
            report(Progress(epoch=self.epoch, epochs=epochs, step=step + 1, steps=self.steps_an_epoch))
        self.steps.finish()
        loss = float(np.mean([float(one) for one in losses]))
        if not np.isfinite(loss):
            raise TrainingDiverged(f"The training loss of epoch {self.epoch + 1} is no number: lower the rate.")
        row = {"epoch": self.epoch + 1, "size": size, "loss": loss}
        if self.validation is not None:
            row["validation_loss"] = self._mean_loss(self.validation, size)
            if self.config.schedule == "plateau":
                self.plateau.observe(row["validation_loss"])
        self.epoch += 1
        self._save()
        return {**row, "seconds": time.monotonic() - started}

    def _rates(self, step: int) -> tuple[float, float]:
        rate = self.plateau.rate
        if self.config.schedule == "cosine":
            steps = self.steps_an_epoch * len(self.config.sizes)
            rate = cosine_rate(self.config.learning_rate, step, steps, self.config.warmup_steps)
        return rate, rate * self.config.head_factor

    def _batches(self) -> Iterator[Batch]:
        generator = np.random.default_rng([self.config.seed, self.epoch])
        order = self._order(generator)
        size = self.config.batch_size
        for step in range(self.steps_an_epoch):
            rows = np.sort(order[step * size : (step + 1) * size])
            drawn = self.learner.augmentation.draw(generator, len(rows))
            metadata = self.data.metadata[rows]
            if self.config.mask_metadata:
                metadata = mask_metadata(metadata, generator, encoding=self._encoding)
            yield Batch(rows=rows, metadata=metadata, labels=self.data.labels[rows], drawn=drawn)

    def _order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        labels, wanted = self.data.labels, self.config.images_an_epoch
        if wanted is None:
            return generator.permutation(len(labels))
        rare = np.flatnonzero(labels != CLASSES.index("nv"))
        chances = balanced_weights(labels)[labels[rare]]
        extra = generator.choice(rare, max(wanted - len(labels), 0), p=chances / chances.sum())
        return generator.permutation(np.concatenate([np.arange(len(labels)), extra]))[:wanted]

    def _mean_loss(self, data: TrainingSet, size: int) -> float:
        losses = []
        for start in range(0, len(data.labels), self.config.batch_size):
            rows = slice(start, start + self.config.batch_size)
            views = resize(data.images[rows], size) / 127.5 - 1.0
            outputs = self._copy([views, ops.convert_to_tensor(data.metadata[rows])], training=False)
            losses.append(float(self._loss(outputs, data.labels[rows])) * len(data.labels[rows]))
        return sum(losses) / len(data.labels)

    def _state(self) -> list[Any]:
        # Every variable of the network: batch statistics and the state of dropout among them.
        network = self._copy.variables
        kept = [v for one in self.learner.optimizers for v in one.variables]
        return [*network, *self.learner.averages, *kept]

    def _save(self) -> None:
        path = self.folder / CHECKPOINT
        temporary = path.with_suffix(".partial")
        with temporary.open("wb") as file:
            arrays = {f"v{index}": ops.convert_to_numpy(variable) for index, variable in enumerate(self._state())}
            np.savez(file, epoch=self.epoch, plateau=self.plateau.state(), **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        with np.load(path, allow_pickle=False) as saved:
            self.epoch = int(saved["epoch"])
            self.plateau.restore(saved["plateau"])
            for index, variable in enumerate(self._state()):
                variable.assign(saved[f"v{index}"])

    def _finish(self) -> None:
        learner = self.learner
        last = [_values(v) for v in learner.averaged]
        for average, variable in zip(learner.averages, learner.averaged, strict=False):
            variable.assign(average)
        write_back(self._copy, self.model)
        # A run that was stopped early goes on from its last weights, not from their average.
        for value, variable in zip(last, learner.averaged, strict=True):
            variable.assign(value)
        offset = prior_free_offset(self.data.prior(), self._shift, self._weights)
        shift_logits(self.model, offset - offset.mean())


def _values(variable: Any) -> NDArray[Any]:
    return np.array(ops.convert_to_numpy(variable))


def _norms(backbone: keras.Model) -> list[Any]:
    return [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]


def _start(config: NetworkConfig, weights: Path | str | None, order: int) -> keras.Model:
    if weights in (None, "imagenet") or not Path(weights).is_dir():
        return build_network(config, weights)
    manifest = read_manifest(Path(weights))
    network, _ = load_network(Path(weights), manifest)
    described = NetworkConfig.model_validate(manifest.network.model_dump())
    # What is measured beside the verdict has no weights, and models of earlier versions do not measure it.
    free: dict[str, Any] = {"intermediate": config.intermediate}
    if config.head == "pooled":
        # Nor do its weights depend on the size of its images.
        free["input_size"] = config.input_size
    members = [member.model_copy(update=free) for member in described.members]
    alike = {n: one for n, one in enumerate(split_network(network)) if members[n] == config}
    if not alike:
        raise ModelError("The model to go on from has another network than the one asked for.")
    network = build_network(config)
    network.set_weights(alike.get(order, next(iter(alike.values()))).get_weights())
    return network
