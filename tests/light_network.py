"""The light classifier with TensorFlow in its process: for a test of where that is loaded."""

import tensorflow as tf

from tests.light_classifier import LightClassifier


class LightNetwork(LightClassifier):
    """Scores by brightness; the network's library is there and idle."""

    engine_name = f"light beside TensorFlow {tf.__version__}"
