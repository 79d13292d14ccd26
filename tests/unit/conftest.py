"""A small artifact with random weights, built once a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model.network import NetworkConfig
from model.package import package_model
from tests.random_model import draw_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.build import BuiltModel


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Run TensorFlow's functions as plain Python: to trace a training step takes far longer than a few of them."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)  # noqa: FBT003 - TensorFlow's own signature
    yield
    tf.config.run_functions_eagerly(False)  # noqa: FBT003 - as above


@pytest.fixture(scope="session")
def built_model() -> BuiltModel:
    """A network with random weights, and thresholds fitted to noise."""
    return draw_model(NetworkConfig(input_size=64, intermediate=True))


@pytest.fixture(scope="session")
def artifact(built_model: BuiltModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model above as an artifact."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    package_model(built_model, folder, name="small", data="noise", git_commit="unknown")
    return folder
