"""Trains a tiny network on whatever Keras computes with: in the test's own process, or as a program of its own.

Usage: tiny_training.py FOLDER CONFIG, with the training configuration as JSON; FOLDER gets network.npz and losses.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np

from model.augmentation import AUGMENTATIONS
from model.metadata import PatientMetadata, encode_metadata
from model.network import NetworkConfig
from model.training import Progress, Trainer, TrainingConfig, TrainingSet

NETWORK = NetworkConfig(backbone="MobileNet", input_size=64, dropout=0.0)


def make_data() -> TrainingSet:
    """Draw images of noise, which batch statistics find nothing constant in."""
    patients = [PatientMetadata(age=30 + 3 * number, sex="female") for number in range(16)]
    return TrainingSet(
        images=np.random.default_rng(0).integers(0, 256, (16, 45, 60, 3), np.uint8),
        metadata=encode_metadata(patients),
        labels=np.arange(16, dtype=np.int64) % 7,
    )


def train(config: TrainingConfig, folder: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Train, and return the losses of the epochs and the network's weights by name."""
    trainer = Trainer(NETWORK, config, make_data(), None, folder)
    # No two backends draw the same first weights.
    generator = np.random.default_rng(1)
    for variable in trainer.learner.network.variables:
        if "seed" in variable.path:
            continue
        fan = max(int(np.prod(variable.shape[:-1])), 1)
        drawn = generator.normal(0, (2 / fan) ** 0.5, variable.shape)
        variable.assign(np.abs(drawn) if len(variable.shape) <= 1 and variable.name != "bias" else drawn)
    for average, variable in zip(trainer.learner.averages, trainer.learner.averaged, strict=False):
        average.assign(variable.value)
    seen: list[Progress] = []
    trainer.run(seen.append)
    weights = {variable.path: keras.ops.convert_to_numpy(variable) for variable in trainer.model.weights}
    return [progress.row["loss"] for progress in seen if progress.row is not None], weights


def views() -> list[np.ndarray]:
    """Return views of two images by every augmentation."""
    images = make_data().images[:2]
    drawn = [(one, one.draw(np.random.default_rng(2), 2)) for one in AUGMENTATIONS.values()]
    return [keras.ops.convert_to_numpy(one.apply(images, 40, *numbers)) for one, numbers in drawn]


def main() -> None:
    """Train as the command line says."""
    folder, config = Path(sys.argv[1]), TrainingConfig.model_validate_json(sys.argv[2])
    losses, weights = train(config, folder)
    (folder / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    np.savez(folder / "network.npz", *weights.values())
    np.savez(folder / "views.npz", *views())


if __name__ == "__main__":
    main()
