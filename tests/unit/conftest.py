"""A small artifact with random weights, built once a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.build import BuildConfig, BuiltModel
from model.calibration import fit_feature_space
from model.crossfit import HeldOut
from model.evaluation import evaluate_out_of_fold
from model.metadata import PatientMetadata
from model.network import NetworkConfig, build_network
from model.package import package_model
from model.reference import make_reference


@pytest.fixture(scope="session")
def built_model() -> BuiltModel:
    """A network with random weights, and thresholds fitted to noise."""
    generator = np.random.default_rng(0)
    config = BuildConfig(network=NetworkConfig(input_size=64))
    network = build_network(config.network)
    labels = np.arange(400) % 7
    features = generator.normal(0, 1, (400, network.output["features"].shape[-1])).astype(np.float32)
    space = fit_feature_space(features, labels)
    held_out = HeldOut(
        logits=generator.normal(0, 1, (400, 7)),
        distances=space.distance(features),
        labels=labels,
        lesion_ids=[str(index) for index in range(400)],
        folds=np.arange(400) % 5,
        patients=[PatientMetadata(age=50)] * 400,
        dx_types=["histo"] * 400,
        prior=np.array([0.04, 0.06, 0.11, 0.02, 0.11, 0.64, 0.02]),
        logits_without_metadata=generator.normal(0, 1, (400, 7)),
    )
    fitted, evaluation = evaluate_out_of_fold(held_out, draws=20)
    return BuiltModel(
        network=network,
        config=config,
        held_out="noise",
        data_digest="0" * 64,
        prior=held_out.prior,
        temperature=1.3,
        operating_point=fitted.operating_point,
        space=space,
        referral=fitted.referral,
        evaluation=evaluation,
        reference=make_reference(held_out.patients, fitted.verdicts.malignant_scores, held_out.distances),
    )


@pytest.fixture(scope="session")
def artifact(built_model: BuiltModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model above as an artifact."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    package_model(built_model, folder, name="small", data="noise", git_commit="unknown")
    return folder
