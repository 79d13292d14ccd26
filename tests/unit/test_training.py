"""A killed training run goes on as if nothing had happened, and its parts do what their formulas say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.augmentation import AUGMENTATIONS, Affine, random_crops
from model.errors import TrainingDiverged
from model.folding import Folded, FusedNorm, training_copy, write_back
from model.labels import CLASSES
from model.losses import balanced_weights, class_prior, cross_entropy, prior_free_offset
from model.metadata import PatientMetadata, encode_metadata
from model.network import NetworkConfig, build_network
from model.schedules import Plateau, cosine_rate
from model.training import Progress, Stage, Trainer, TrainingConfig, TrainingSet

# The backbone with the fewest layers: building its graphs takes most of the time of these tests.
NETWORK = NetworkConfig(backbone="MobileNet", input_size=32)
SHORT = (Stage(epochs=1, size=32), Stage(epochs=1, size=48))


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    generator = np.random.default_rng(0)
    return TrainingSet(
        images=generator.integers(0, 256, (16, 45, 60, 3), np.uint8),
        metadata=encode_metadata([PatientMetadata(age=50)] * 16),
        labels=np.arange(16) % 7,
    )


def rows(trainer: Trainer, **options: Any) -> list[dict[str, float]]:
    seen: list[Progress] = []
    trainer.run(seen.append, **options)
    return [progress.row for progress in seen if progress.row is not None]


@pytest.mark.parametrize("norms", ["frozen", "trained"])
def test_a_run_stopped_after_an_epoch_resumes_to_the_same_network(
    tmp_path: Path, data: TrainingSet, norms: Any, request: pytest.FixtureRequest
) -> None:
    if norms == "trained":
        # One of the two as it is in production is enough.
        request.getfixturevalue("eagerly")
    config = TrainingConfig(
        stages=SHORT, batch_size=8, warmup_steps=2, batch_norm=norms, ema=0.9 if norms == "frozen" else 0
    )
    # Given a run to the end
    whole = Trainer(NETWORK, config, data, None, tmp_path / "whole")
    expected = rows(whole)

    # If another stops after its first epoch, and a third goes on in its folder
    asked = iter([False, True])
    first = rows(Trainer(NETWORK, config, data, None, tmp_path / "parts"), until=lambda: next(asked))
    third = Trainer(NETWORK, config, data, None, tmp_path / "parts")
    second = rows(third)

    # Then epoch by epoch the losses are the same, dropout included, and so is the network
    assert [row["epoch"] for row in first + second] == [1, 2]
    assert [row["loss"] for row in first + second] == pytest.approx([row["loss"] for row in expected], rel=1e-3)
    for mine, other in zip(third.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-2, atol=1e-3)


def test_the_plateau_schedule_follows_the_validation_loss_and_stops(tmp_path: Path, data: TrainingSet) -> None:
    config = TrainingConfig(
        stages=(Stage(epochs=2, size=32),), batch_size=8, schedule="plateau", ema=0, weight_decay=0, epsilon=0.1
    )
    trainer = Trainer(NETWORK, config, data, None, tmp_path, validation=data)

    seen = rows(trainer)

    assert all(np.isfinite(row["validation_loss"]) for row in seen)
    assert trainer.plateau.best == min(row["validation_loss"] for row in seen)


def test_a_loss_that_is_no_number_ends_the_run_before_a_checkpoint(tmp_path: Path, data: TrainingSet) -> None:
    config = TrainingConfig(stages=SHORT, batch_size=8, loss="weighted", class_weights=(float("nan"),) * 7)

    with pytest.raises(TrainingDiverged, match="epoch 1"):
        rows(Trainer(NETWORK, config, data, None, tmp_path))

    assert not (tmp_path / "checkpoint.npz").exists()


def test_an_enlarged_epoch_holds_every_image_and_more_of_the_rare_classes(tmp_path: Path, data: TrainingSet) -> None:
    config = TrainingConfig(stages=SHORT, batch_size=8, images_an_epoch=40)
    trainer = Trainer(NETWORK, config, data, None, tmp_path)

    order = trainer._order(np.random.default_rng(0))

    assert len(order) == 40
    assert set(order) == set(range(16))
    assert np.sum(data.labels[order] == CLASSES.index("nv")) == np.sum(data.labels == CLASSES.index("nv"))


@pytest.mark.parametrize("backbone", ["MobileNet", "MobileNetV2"])
def test_folded_batch_norm_computes_the_same_at_any_size_and_is_written_back(backbone: Any) -> None:
    # Given a network whose batch statistics are not the identity
    generator = np.random.default_rng(0)
    network = build_network(NetworkConfig(backbone=backbone, input_size=64))
    for layer in network.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    inputs = [
        generator.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32),
        np.zeros((2, network.inputs[1].shape[1]), np.float32),
    ]

    # If it is copied for training, trained a little, and written back
    copy = training_copy(network, fold=True)
    folded = [layer for layer in copy.get_layer("backbone").layers if isinstance(layer, Folded)]
    before = np.asarray(copy(inputs)["logits"]), np.asarray(network(inputs)["logits"])
    for variable in copy.trainable_variables:
        variable.assign(variable.value * 1.02 + 0.001)
    write_back(copy, network)
    after = np.asarray(copy(inputs)["logits"]), np.asarray(network(inputs)["logits"])

    # Then both compute the same, before and after
    assert folded
    np.testing.assert_allclose(*before, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(*after, rtol=1e-3, atol=1e-4)
    assert np.abs(after[0] - before[0]).max() > 1e-2
    assert copy([np.zeros((1, 96, 96, 3), np.float32), inputs[1][:1]])["attention"].shape == (1, 3, 3)


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False, "epsilon": 0.1, "momentum": 0.7}])
def test_fused_batch_norm_is_keras_own(options: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    maps = tf.constant(generator.normal(2, 3, (4, 5, 6, 8)), tf.float32)
    weights = [generator.uniform(0.5, 2, 8) for _ in range(4 - ("scale" in options) - ("center" in options))]
    ours, theirs = FusedNorm(**options), keras.layers.BatchNormalization(**options)
    ours.build(maps.shape)
    theirs.build(maps.shape)

    for training in (True, False):
        found = []
        for layer in (ours, theirs):
            layer.set_weights(weights)
            with tf.GradientTape() as tape:
                tape.watch(maps)
                normal = layer(maps, training=training)
                loss = tf.reduce_mean(normal**3)
            found.append([normal, *tape.gradient(loss, [maps, *layer.trainable_variables]), *layer.get_weights()])
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_copy_whose_statistics_train_has_fused_batch_norms_and_follows_each_batch() -> None:
    network = build_network(NETWORK)
    copy = training_copy(network, fold=False)
    norms = [one for one in copy.get_layer("backbone").layers if isinstance(one, keras.layers.BatchNormalization)]
    inputs = [np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)), np.zeros((8, network.inputs[1].shape[1]))]

    # In inference mode both compute the same, and the statistics stay
    np.testing.assert_allclose(copy(inputs)["logits"], network(inputs)["logits"], rtol=1e-5, atol=1e-6)
    assert {type(norm) for norm in norms} == {FusedNorm}
    assert not norms[0].moving_mean.value.numpy().any()

    copy(inputs, training=True)
    assert norms[0].moving_mean.value.numpy().all()


@pytest.mark.usefixtures("eagerly")
def test_the_scale_of_the_loss_matters_with_the_papers_epsilon_and_not_with_a_small_one(
    tmp_path: Path, data: TrainingSet
) -> None:
    def moved(epsilon: float, scale: float) -> Any:
        config = TrainingConfig(
            stages=(Stage(epochs=1, size=32),), batch_size=8, loss="weighted", class_weights=(scale,) * 7,
            epsilon=epsilon, clip_norm=None, weight_decay=0, ema=0, warmup_steps=1, smoothing=0, batch_norm="trained",
        )  # fmt: skip
        trainer = Trainer(NETWORK, config, data, None, tmp_path / f"{epsilon}-{scale}")
        before = trainer.model.get_layer("classifier").get_weights()[0]
        rows(trainer)
        return trainer.model.get_layer("classifier").get_weights()[0] - before

    # The paper's new loss is its old one times 32.5
    small, large = moved(1e-7, 1.0), moved(1e-7, 32.5)
    assert np.linalg.norm(large - small) < 0.2 * np.linalg.norm(small)
    assert np.linalg.norm(moved(0.1, 32.5)) > 2 * np.linalg.norm(moved(0.1, 1.0))


def test_the_papers_class_weights_come_from_counts() -> None:
    labels = np.repeat(np.arange(7), [10, 20, 30, 40, 50, 60, 70])

    weights = balanced_weights(labels)

    assert weights == pytest.approx([280 / (7 * count) for count in (10, 20, 30, 40, 50, 60, 70)])


@pytest.mark.parametrize("weights", [np.ones(7), np.array([1, 1, 1, 1, 5, 1, 1.0])])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_offset_turns_what_a_loss_teaches_into_the_posterior(weights: Any, shifted: bool) -> None:
    # Given frequencies at one image, and logits that minimise the loss over them
    posterior = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.15, 0.05])
    prior = np.array([0.1, 0.1, 0.2, 0.1, 0.2, 0.2, 0.1])
    shift = np.log(prior) if shifted else np.zeros(7)
    taught = np.log(weights * posterior) - shift
    with tf.GradientTape() as tape:
        logits = tf.Variable(np.tile(taught, (7, 1)), dtype=tf.float32)
        losses = [
            cross_entropy(logits[c : c + 1], tf.constant([c]), shift=shift, weights=weights) * posterior[c]
            for c in range(7)
        ]
        loss = tf.add_n(losses)
    assert np.abs(tf.reduce_sum(tape.gradient(loss, logits), axis=0)).max() < 1e-5

    # If the offset is added, then softmax(logits + log prior) is the posterior
    free = taught + prior_free_offset(prior, shift, weights)
    found = np.exp(free + np.log(prior))
    assert found / found.sum() == pytest.approx(posterior)


@pytest.mark.parametrize("smooth_to", ["prior", "uniform"])
def test_a_network_that_is_sure_of_a_class_holds_the_others_alike_where_labels_are_smoothed_to_the_prior(
    smooth_to: Any, tmp_path: Path, data: TrainingSet
) -> None:
    # Given many images of one class, and one or two of each other
    labels = np.array([5] * 10 + [0, 1, 2, 3, 4, 4])
    uneven = TrainingSet(images=data.images, metadata=data.metadata, labels=labels)
    config = TrainingConfig(stages=SHORT, smoothing=0.1, smooth_to=smooth_to)
    loss = Trainer(NETWORK, config, uneven, None, tmp_path).learner.loss

    # If all images look alike and are called the common class, then these logits have the least loss
    share = class_prior(labels) if smooth_to == "prior" else np.full(7, 1 / 7)
    best = np.log(0.9 * (np.arange(7) == 5) + 0.1 * share) - np.log(class_prior(labels))
    with tf.GradientTape() as tape:
        logits = tf.Variable(best[None], dtype=tf.float32)
        lost = loss({"logits": logits}, tf.constant([5]))
    assert np.abs(tape.gradient(lost, logits)).max() < 1e-6

    # Then no other class is likelier than another, while alike shares favour what is rare
    others = np.delete(best, 5)
    assert np.ptp(others) == pytest.approx(0 if smooth_to == "prior" else np.log(2), abs=1e-9)


def test_a_class_without_images_gets_a_prior_all_the_same() -> None:
    assert class_prior(np.array([0, 0, 1])).min() > 0


def test_the_cosine_rises_falls_and_ends_at_its_floor() -> None:
    rates = [cosine_rate(1e-3, step, 100, 10) for step in range(101)]

    assert rates[9] == max(rates) == 1e-3
    assert rates[55] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 2)
    assert rates[100] == pytest.approx(1e-6)


def test_the_plateau_falls_after_five_epochs_and_stops_after_thirty_five() -> None:
    plateau = Plateau(rate=1e-3)
    plateau.observe(1.0)
    for _ in range(5):
        assert plateau.rate == 1e-3
        plateau.observe(1.0)
    assert plateau.rate == pytest.approx(2e-4)
    for _ in range(30):
        assert not plateau.stopped
        plateau.observe(1.0)
    assert plateau.stopped
    assert plateau.rate >= 1e-7
    copied = Plateau(rate=0)
    copied.restore(plateau.state())
    assert copied == plateau


def test_crops_stay_inside_the_image_and_flip_both_ways() -> None:
    boxes, colours = random_crops(np.random.default_rng(0), 1000)

    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    area = np.abs((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert area.min() > 0.45
    assert 0.4 < np.mean(boxes[:, 0] > boxes[:, 2]) < 0.6
    assert 0.4 < np.mean(boxes[:, 1] > boxes[:, 3]) < 0.6
    assert colours.shape == (1000, 3, 3)


def test_an_affine_view_turns_flips_and_shifts_about_the_centre() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 3)).astype(np.uint8)

    def view(*row: float) -> Any:
        return np.asarray(Affine().apply(image, 9, np.array([row], np.float32)))[0]

    np.testing.assert_allclose(view(1, 0, 0, 0, 1, 0), image[0], atol=1e-3)
    np.testing.assert_allclose(view(-1, 0, 0, 0, 1, 0), image[0][:, ::-1], atol=1e-3)
    np.testing.assert_allclose(view(0, -1, 0, 1, 0, 0), np.rot90(image[0]), atol=1e-2)
    # A quarter of [-1, 1] over eight steps is two pixels; the border's pixel goes on beyond it
    np.testing.assert_allclose(view(1, 0, 0.5, 0, 1, 0)[:, :7], image[0][:, 2:], atol=1e-2)
    np.testing.assert_allclose(view(1, 0, 0.5, 0, 1, 0)[:, 7], image[0][:, 8], atol=1e-2)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_gives_pixels_of_the_asked_size(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 45, 60, 3)).astype(np.uint8)
    augmentation = AUGMENTATIONS[name]

    views = np.asarray(augmentation.apply(images, 32, *augmentation.draw(np.random.default_rng(1), 4)))

    assert views.shape == (4, 32, 32, 3)
    assert 0 <= views.min() <= views.max() <= 255
