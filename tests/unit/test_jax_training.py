"""Training on JAX, in a process of its own, does what training on TensorFlow does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.training import Stage, TrainingConfig
from tests import tiny_training

ROOT = Path(tiny_training.__file__).parents[1]
SHORT = TrainingConfig(stages=(Stage(epochs=2, size=64),), batch_size=16, warmup_steps=1, ema=0.5)


def train_on_jax(config: TrainingConfig, folder: Path) -> list[float]:
    folder.mkdir(exist_ok=True)
    program = [sys.executable, tiny_training.__file__, str(folder), config.model_dump_json()]
    surroundings = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        # Two steps are not worth a minute of optimisation.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(program, env=surroundings, check=True, capture_output=True, cwd=folder)
    losses: list[float] = json.loads((folder / "losses.json").read_text())
    return losses


@pytest.mark.slow
def test_both_backends_train_the_same_network(tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"batch_norm": "trained", "augmentation": "turns", "freeze_first_blocks": False})

    losses = train_on_jax(config, tmp_path / "jax")
    expected, weights = tiny_training.train(config, tmp_path / "tensorflow")

    assert losses == pytest.approx(expected, rel=2e-3)
    with np.load(tmp_path / "jax" / "network.npz") as saved:
        for (name, weight), mine in zip(weights.items(), saved.values(), strict=True):
            # TensorFlow takes the variance of a batch for a sample's, over n - 1; JAX over n.
            loose = 0.05 if name.endswith("moving_variance") else 2e-3
            np.testing.assert_allclose(mine, weight, rtol=5e-3, atol=loose, err_msg=name)
    with np.load(tmp_path / "jax" / "views.npz") as saved:
        for mine, other in zip(saved.values(), tiny_training.views(), strict=True):
            np.testing.assert_allclose(mine, other, atol=0.1)


@pytest.mark.slow
def test_a_finished_run_on_jax_is_left_alone(tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"precision": "bfloat16", "stages": (Stage(epochs=2, size=32),)})

    losses = train_on_jax(config, tmp_path)

    assert len(losses) == 2
    assert np.isfinite(losses).all()
    # Its checkpoint, optimizers and averages among it, is what the next run begins with
    assert train_on_jax(config, tmp_path) == []
