"""A model whose weights were drawn and not trained, with all that an artifact states."""

import numpy as np

from model.build import BuildConfig, BuiltModel
from model.calibration import fit_feature_space
from model.crossfit import HeldOut
from model.evaluation import evaluate_out_of_fold
from model.metadata import PatientMetadata
from model.network import NetworkConfig, build_network
from model.reference import make_reference


def draw_model(network: NetworkConfig) -> BuiltModel:
    """Build a network with random weights, and thresholds fitted to noise."""
    generator = np.random.default_rng(0)
    config = BuildConfig(network=network)
    built = build_network(network)
    labels = np.arange(400) % 7
    features = generator.normal(0, 1, (400, built.output["features"].shape[-1])).astype(np.float32)
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
        network=built,
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
