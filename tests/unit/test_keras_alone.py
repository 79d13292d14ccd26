"""A worker's start is not spent on libraries that score nothing."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
from model.keras_alone import import_keras
import_keras()
large = {"matplotlib", "pandas", "sklearn"}
found = {"present": sorted((large | {"jax"}) & sys.modules.keys()), "keras": "keras" in sys.modules}
import pandas, matplotlib, sklearn.metrics
import_keras()
print(json.dumps(found | {"afterwards": sorted(large & sys.modules.keys())}))
"""


def test_keras_is_imported_without_the_libraries_of_others_and_these_can_be_had_afterwards() -> None:
    # Given a process of its own, as one process imports a library once
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)

    # Then Keras is there and the three are not, until somebody imports them
    assert found == {"present": [], "keras": True, "afterwards": ["matplotlib", "pandas", "sklearn"]}
