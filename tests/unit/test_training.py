"""A killed training run goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.metadata import PatientMetadata, encode_metadata
from model.network import NetworkConfig
from model.training import Trainer, TrainingConfig, TrainingSet, random_views

# Without dropout, whose random state is not part of a checkpoint, an epoch is repeated to the rounding.
NETWORK = NetworkConfig(input_size=32, dropout=0.0)


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    generator = np.random.default_rng(0)
    return TrainingSet(
        images=generator.integers(0, 256, (16, 45, 60, 3), np.uint8),
        metadata=encode_metadata([PatientMetadata(age=50)] * 16),
        labels=np.arange(16) % 7,
    )


def test_a_run_stopped_after_an_epoch_resumes_to_the_same_loss(tmp_path: Path, data: TrainingSet) -> None:
    config = TrainingConfig(epochs=2, batch_size=8, warmup_steps=2)
    weights = tmp_path / "start.weights.h5"

    def trainer(folder: str) -> Trainer:
        made = Trainer(NETWORK, config, data, None, tmp_path / folder)
        if weights.exists():
            made.model.load_weights(weights)
        else:
            made.model.save_weights(weights)
        made.start_averages()
        return made

    # Given a run to the end
    whole: list[dict[str, float]] = []
    trainer("whole").run(whole.append)

    # If another stops after its first epoch, and a third goes on in its folder
    parts: list[dict[str, float]] = []
    trainer("parts").run(parts.append, until=lambda: bool(parts))
    assert [row["epoch"] for row in parts] == [1]
    trainer("parts").run(parts.append)

    # Then epoch by epoch the losses are the same
    assert [row["epoch"] for row in parts] == [1, 2]
    assert parts[1]["loss"] == pytest.approx(whole[1]["loss"], rel=0.02)


def test_batch_statistics_are_estimated_for_the_blocks_that_train_and_kept_for_the_others(
    tmp_path: Path, data: TrainingSet
) -> None:
    trainer = Trainer(NETWORK, TrainingConfig(epochs=1, batch_size=8, warmup_steps=1), data, None, tmp_path)

    trainer.run(lambda _: None)

    backbone = trainer.model.get_layer("backbone")
    kept = np.asarray(backbone.get_layer("bn_Conv1").moving_mean)
    estimated = np.asarray(backbone.get_layer("block_5_expand_BN").moving_mean)
    assert np.array_equal(kept, np.zeros_like(kept))
    assert not np.array_equal(estimated, np.zeros_like(estimated))


def test_crops_stay_inside_the_image_and_flip_both_ways() -> None:
    boxes, colours = random_views(np.random.default_rng(0), 1000)

    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    area = np.abs((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert area.min() > 0.45
    assert 0.4 < np.mean(boxes[:, 0] > boxes[:, 2]) < 0.6
    assert 0.4 < np.mean(boxes[:, 1] > boxes[:, 3]) < 0.6
    assert colours.shape == (1000, 3, 3)
