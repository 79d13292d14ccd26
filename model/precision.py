"""What networks compute in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import keras

#: What the network computes in; weights, calibration and probabilities are float32 whatever it is.
Precision = Literal["float32", "float16", "bfloat16"]

#: Keras's name of each.
POLICIES: Final[dict[Precision, str]] = {"float32": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Build networks that compute in a precision.

    Args:
        precision: Of every layer that does not ask for another one.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
