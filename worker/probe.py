"""Looks at model and devices as a worker would: `python -m worker.probe` prints one JSON line."""

import json
import sys
from typing import Any

from db.errors import LedgerError
from db.models import active_model
from db.session import TRANSIENT_ERRORS, open_ledger
from db.settings import DbSettings, HomeSettings, read_settings
from model.hush import hush_tensorflow
from model.keras_alone import import_keras
from worker.settings import WorkerSettings


def probe() -> dict[str, Any]:
    """Load TensorFlow and the active model.

    Returns:
        `tensorflow`, `gpus`, `model` (the digest that was loaded, or None), and `problem`, a sentence or None.
    """
    hush_tensorflow()
    import_keras()
    import tensorflow as tf

    from model.classifier import Classifier
    from model.errors import ModelError
    from worker.store import ArtifactStore

    found: dict[str, Any] = {
        "tensorflow": tf.__version__,
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "model": None,
        "problem": None,
    }
    home = read_settings(HomeSettings)
    try:
        active = active_model(open_ledger(read_settings(DbSettings).ledger_url(home)))
        if active is None:
            return found | {"problem": "No model is active: run `python -m worker.register`."}
        loaded = Classifier.load(ArtifactStore.open(home, read_settings(WorkerSettings)).fetch(active.digest))
    except (ModelError, LedgerError) as error:
        return found | {"problem": str(error)}
    except TRANSIENT_ERRORS as error:
        return found | {"problem": f"The ledger does not answer ({type(error).__name__})."}
    return found | {"model": loaded.digest}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
