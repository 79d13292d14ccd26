"""How far what a network says of an image lies from what it said of those it was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from model.familiarity import FeatureSpace, fit_feature_space, fit_spaces, measure_distance, pack_spaces


def test_what_lies_far_from_every_class_is_far() -> None:
    generator = np.random.default_rng(3)
    centres = generator.normal(0, 5, (7, 20))
    labels = generator.integers(0, 7, 2000)
    features = centres[labels] + generator.normal(0, 1, (2000, 20))

    space = fit_feature_space(features, labels)

    known = space.distance(centres[labels] + generator.normal(0, 1, (2000, 20)))
    strange = space.distance(generator.normal(40, 5, (200, 20)))
    assert strange.min() > np.quantile(known, 0.99)


def test_what_mixes_features_as_no_training_image_does_is_far_though_it_lies_in_the_middle() -> None:
    # Given images of each class with features of their own, some strong and some weak
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 7, 2000)
    strengths = generator.uniform(0.5, 4, (2000, 1))
    features = strengths * (np.eye(7).repeat(10, axis=1)[labels] + generator.normal(0, 0.05, (2000, 70)))

    space = fit_feature_space(features, labels)

    # Then a weak mixture of all is no farther from a class than they are, and yet far
    known, strange = features[:1000], np.full((1, 70), 0.3)
    classes, directions = space.parts(np.concatenate([known, strange])).T
    assert classes[-1] < np.quantile(classes[:-1], 0.9)
    assert directions[-1] > 3 * directions[:-1].max()
    assert space.distance(strange)[0] > 3 * space.distance(known).max()
    assert np.linalg.norm(space.prototypes, axis=1) == pytest.approx(np.ones(64))

    # And a space of earlier models, without prototypes, has the first part alone
    earlier = FeatureSpace(mean=space.mean, projection=space.projection, centres=space.centres, residual=space.residual)
    assert earlier.distance(features) == pytest.approx(space.parts(features)[:, 0])
    packed, before = (set(pack_spaces({"features": one})) for one in (space, earlier))
    assert packed - before == {"space.prototypes", "space.scales"}


def test_features_that_are_all_alike_give_a_space_without_distances() -> None:
    features = np.ones((70, 100), np.float32)

    space = fit_feature_space(features, np.arange(70) % 7)

    assert space.distance(features) == pytest.approx(np.zeros(70), abs=1e-3)


def test_what_one_layer_does_not_tell_from_training_images_another_may() -> None:
    # Given images that two layers tell of, and strange ones of which only the second tells
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 7, 2000)
    centres = {name: generator.normal(0, 5, (7, 80)) for name in ("features", "intermediate")}
    known = {name: means[labels] + generator.normal(0, 1, (2000, 80)) for name, means in centres.items()}
    strange = {"features": known["features"][:50], "intermediate": generator.normal(40, 5, (50, 80))}

    spaces = fit_spaces({**known, "logits": np.zeros((2000, 7))}, labels)

    # Then they are far, though not by the first alone; and a network that tells of one is measured by one
    assert set(spaces) == {"features", "intermediate"}
    assert measure_distance(spaces, strange).min() > measure_distance(spaces, known).max()
    alone = fit_spaces({"features": known["features"]}, labels)
    assert measure_distance(alone, strange) == pytest.approx(alone["features"].distance(strange["features"]))
    assert measure_distance(alone, strange).max() < measure_distance(alone, known).max() + 1e-9
