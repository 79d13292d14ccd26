"""A small artifact with random weights, built once a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.build import BuildConfig, BuiltModel
from model.calibration import (
    balanced_confidence,
    fit_feature_space,
    fit_operating_point,
    fit_referral,
    posterior,
)
from model.labels import CLASSES
from model.network import NetworkConfig, build_network
from model.package import package_model


@pytest.fixture(scope="session")
def built_model() -> BuiltModel:
    """A network with random weights, and thresholds fitted to noise."""
    generator = np.random.default_rng(0)
    config = BuildConfig(network=NetworkConfig(input_size=64))
    network = build_network(config.network)
    labels = np.arange(400) % 7
    features = generator.normal(0, 1, (400, network.output["features"].shape[-1])).astype(np.float32)
    space = fit_feature_space(features, labels)
    prior = np.array([0.04, 0.06, 0.11, 0.02, 0.11, 0.64, 0.02])
    posteriors = posterior(generator.normal(0, 1, (400, 7)), prior)
    figures = ("images", "balanced_accuracy", "accuracy", "accuracy_of_posterior", "macro_auc", "malignant_auc")
    metrics = dict.fromkeys((*figures, "calibration_error"), 0.5) | {"recall": dict.fromkeys(CLASSES, 0.5)}
    return BuiltModel(
        network=network,
        config=config,
        data_digest="0" * 64,
        prior=prior,
        temperature=1.3,
        operating_point=fit_operating_point(posteriors, labels, [str(index) for index in range(400)]),
        space=space,
        referral=fit_referral(space.distance(features), balanced_confidence(posteriors, prior), labels),
        metrics=metrics | {"without_metadata": metrics},
    )


@pytest.fixture(scope="session")
def artifact(built_model: BuiltModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model above as an artifact."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    package_model(built_model, folder, name="small", data="noise", git_commit="unknown")
    return folder
