"""Imports TensorFlow and Keras, which import four large libraries more wherever they find them."""

import importlib
import sys
from typing import Any, Final, cast

#: What Keras takes for plots, for wrappers and for tables as training data, and TensorFlow Lite for converting others'
#: models. Both do without where it is missing: a third of the time that TensorFlow takes to be imported, and nothing of
#: it scores an image.
_NOT_FOR_SCORING: Final = ("jax", "matplotlib", "pandas", "sklearn")


def import_keras() -> None:
    """Import TensorFlow and Keras without the libraries that scoring does not use; those can be imported afterwards.

    No other thread may import any of them meanwhile, so call it before there are threads.
    """
    if {"tensorflow", "keras"} <= sys.modules.keys():
        return
    hidden = [name for name in _NOT_FOR_SCORING if name not in sys.modules]
    # None makes an import fail as if nothing were installed.
    cast("dict[str, Any]", sys.modules).update(dict.fromkeys(hidden))
    try:
        importlib.import_module("tensorflow")
        importlib.import_module("keras")
    finally:
        for name in hidden:
            del sys.modules[name]
