"""From labelled images to a calibrated model: train, judge on held-out lesions, fit thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.calibration import (
    FeatureSpace,
    OperatingPoint,
    ReferralThresholds,
    balanced_confidence,
    fit_feature_space,
    fit_operating_point,
    fit_referral,
    fit_temperature,
    posterior,
)
from model.dataset import LabelledImage, load_images, read_labels
from model.metadata import UNKNOWN, encode_metadata
from model.metrics import summarise
from model.network import NetworkConfig
from model.splits import assign_folds
from model.training import Trainer, TrainingConfig, TrainingSet

#: Training images the feature space is learned from: enough for 64 components.
FEATURE_IMAGES: Final = 4000
SEED: Final = 0


class BuildConfig(BaseModel):
    """What to build.

    Attributes:
        network: Architecture.
        training: Recipe.
        fold: The fold of lesions held out of training: it judges the model and fits its thresholds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    fold: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A trained network with everything its artifact states.

    Attributes:
        network: The network with its averaged weights.
        config: What was built.
        data_digest: sha256 over images, lesions and labels read.
        prior: `(7,)` class frequencies in training, which the posterior assumes.
        temperature: T of the posterior.
        operating_point: Where an image counts as suspicious.
        space: Feature space of the training images.
        referral: When an image goes to a person.
        metrics: Figures on the held-out fold, with metadata and with all of it removed.
    """

    network: keras.Model
    config: BuildConfig
    data_digest: str
    prior: NDArray[np.float64]
    temperature: float
    operating_point: OperatingPoint
    space: FeatureSpace
    referral: ReferralThresholds
    metrics: dict[str, Any]


def run_network(
    network: keras.Model, images: NDArray[np.uint8], metadata: NDArray[np.float32], *, batch: int = 64
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run the network over decoded images.

    Args:
        network: From `build_network`.
        images: `(n, s, s, 3)` uint8.
        metadata: `(n, WIDTH)` float32.
        batch: Images a step.

    Returns:
        Logits `(n, 7)` and features `(n, f)`.
    """
    logits, features = [], []
    for start in range(0, len(images), batch):
        stop = start + batch
        outputs = network([images[start:stop].astype(np.float32) / 127.5 - 1.0, metadata[start:stop]], training=False)
        logits.append(np.asarray(outputs["logits"]))
        features.append(np.asarray(outputs["features"]))
    return np.concatenate(logits), np.concatenate(features)


def build_model(
    folder: Path,
    config: BuildConfig,
    *,
    weights: Path | str | None,
    run: Path,
    report: Callable[[dict[str, float]], None],
) -> BuiltModel:
    """Train a model on a folder of labelled images, and calibrate it on the held-out fold.

    The gate set is left out of everything. A run killed half-way goes on from its last epoch.

    Args:
        folder: Images in HAM10000's layout.
        config: What to build.
        weights: Backbone weights, see `model.backbones.build_backbone`.
        run: Folder of the run's checkpoint and learning curve.
        report: Called after each epoch.

    Raises:
        TrainingDataError: The folder's metadata cannot be used.
    """
    rows = read_labels(folder)
    labels = np.array([row.label for row in rows])
    folds = assign_folds([row.lesion_id for row in rows], labels)
    training_rows = [row for row, fold in zip(rows, folds, strict=True) if fold not in (-1, config.fold)]
    held_out = [row for row, fold in zip(rows, folds, strict=True) if fold == config.fold]
    images, digest = load_images(folder, training_rows)
    data = TrainingSet(images=images, metadata=_encode(training_rows), labels=_labels(training_rows))
    trainer = Trainer(config.network, config.training, data, weights, run)
    trainer.run(report)
    return _calibrate(folder, config, trainer.model, data.prior(), digest, training_rows, held_out)


def _calibrate(
    folder: Path,
    config: BuildConfig,
    network: keras.Model,
    prior: NDArray[np.float64],
    digest: str,
    training_rows: list[LabelledImage],
    held_out: list[LabelledImage],
) -> BuiltModel:
    size = (config.network.input_size, config.network.input_size)
    chosen = np.random.default_rng(SEED).permutation(len(training_rows))[:FEATURE_IMAGES]
    known = [training_rows[index] for index in chosen]
    _, known_features = run_network(network, load_images(folder, known, size)[0], _encode(known))
    space = fit_feature_space(known_features, _labels(known))

    images, labels = load_images(folder, held_out, size)[0], _labels(held_out)
    logits, features = run_network(network, images, _encode(held_out))
    temperature = fit_temperature(logits, prior, labels)
    probabilities = posterior(logits, prior, temperature)
    without, _ = run_network(network, images, encode_metadata([UNKNOWN] * len(held_out)))
    metrics: dict[str, Any] = dict(summarise(probabilities, prior, labels))
    metrics["without_metadata"] = summarise(posterior(without, prior, temperature), prior, labels)
    return BuiltModel(
        network=network,
        config=config,
        data_digest=digest,
        prior=prior,
        temperature=temperature,
        operating_point=fit_operating_point(probabilities, labels, [row.lesion_id for row in held_out]),
        space=space,
        referral=fit_referral(space.distance(features), balanced_confidence(probabilities, prior), labels),
        metrics=metrics,
    )


def _encode(rows: list[LabelledImage]) -> NDArray[np.float32]:
    return encode_metadata([row.patient for row in rows])


def _labels(rows: list[LabelledImage]) -> NDArray[np.int64]:
    return np.array([row.label for row in rows], np.int64)
