"""A model whose weights were drawn and not trained, with all that an artifact states."""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.build import BuildConfig, BuiltModel
from model.classifier import golden_input
from model.crossfit import HeldOut
from model.evaluation import evaluate_out_of_fold
from model.familiarity import MEASURED, fit_spaces, measure_distance
from model.joining import split_network
from model.metadata import PatientMetadata
from model.network import NetworkConfig, build_network
from model.reference import make_reference

#: Of a logit over images: enough to see a wrong answer, and little enough for weights of 16 bits.
_DEVIATION = 0.1


def draw_model(network: NetworkConfig) -> BuiltModel:
    """Build a network with random weights that tells images apart, and thresholds fitted to noise."""
    generator = np.random.default_rng(0)
    config = BuildConfig(network=network)
    # The same weights in every run: a test that fails by chance says nothing.
    keras.utils.set_random_seed(0)
    built = build_network(network)
    # Those of golden predictions, which are what 16 bits must not move.
    images = np.concatenate([golden_input(seed, network.input_size, network.metadata)[0] for seed in range(4)])
    spread_answers(built, images)
    labels = np.arange(400) % 7
    widths = {name: built.output[name].shape[-1] for name in MEASURED if name in built.output}
    said = {name: generator.normal(0, 1, (400, width)).astype(np.float32) for name, width in widths.items()}
    spaces = fit_spaces(said, labels)
    held_out = HeldOut(
        logits=generator.normal(0, 1, (400, 7)),
        distances=measure_distance(spaces, said),
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
        spaces=spaces,
        referral=fitted.referral,
        evaluation=evaluation,
        reference=make_reference(held_out.patients, fitted.verdicts.malignant_scores, held_out.distances),
    )


def spread_answers(network: keras.Model, images: NDArray[np.uint8]) -> None:
    """Give a network with drawn weights logits that differ over these images, by `_DEVIATION`.

    As they are drawn, its activations fade from layer to layer, to 1e-12 in MobileNetV3Large: it answers the same to
    everything, and two ways of running it would agree on whatever they compute.
    """
    pixels = images.astype(np.float32) / 127.5 - 1
    nobody = np.zeros((len(images), network.inputs[1].shape[1]), np.float32)
    norms = [layer for layer in network._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        # The statistics of this one batch.
        layer.momentum = 0.0
    # As a graph, which lets go of what no later layer needs: layer by layer NASNetLarge takes more than 24 GiB.
    answer = tf.function(network)
    answer([pixels, nobody], training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    logits = np.asarray(answer([pixels, nobody], training=False)["logits"])
    scale = _DEVIATION / logits.std(axis=0)
    for one in split_network(network):
        last = one.get_layer("classifier")
        last.kernel.assign(last.kernel * scale)
        last.bias.assign((last.bias - logits.mean(axis=0)) * scale)
