"""What the choice of an engine gives for each backbone: TensorFlow, and what a worker takes, side by side.

Usage: python -m tests.benchmarks.measure_engines [BACKBONE ...]

Weights are random. Rounds go through both in turn; what counts is the median of the ratios within a round, which cannot
be below 1 by more than noise: a worker takes LiteRT only where its own check finds it faster, and as right.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.backbones import BACKBONES, BackboneName
from model.batches import keep_batches_apart
from model.classifier import Classifier, golden_input
from model.network import NetworkConfig
from model.package import package_model
from tests.benchmarks.profiling import classify_all
from tests.random_model import draw_model

_ROUNDS: Final = 5
#: A round takes about so long on each engine.
_SECONDS: Final = 2.0


def measure(backbone: BackboneName) -> str:
    """Measure one backbone; returns a line of the table."""
    size = BACKBONES[backbone].input_size
    built = draw_model(NetworkConfig.model_validate({"backbone": backbone, "input_size": size}))
    with tempfile.TemporaryDirectory() as folder:
        package_model(built, Path(folder) / "model", name=backbone, data="noise", git_commit="unknown")
        plain, chosen = (Classifier.load(Path(folder) / "model", engine=engine) for engine in ("tensorflow", "auto"))
    # As many as make whole batches on any number of cores.
    images = np.concatenate([golden_input(seed, size, built.config.network.metadata)[0] for seed in range(8)])
    answers = [np.asarray([one.probabilities for one in classify_all(kind, images)]) for kind in (plain, chosen)]
    difference = np.abs(answers[0] - answers[1]).max()
    rounds = max(1, round(_SECONDS / _seconds(plain, images, 1)))
    rates: dict[Classifier, list[float]] = {plain: [], chosen: []}
    for _ in range(_ROUNDS):
        for one, found in rates.items():
            found.append(len(images) * rounds / _seconds(one, images, rounds))
    ratio = statistics.median(two / one for one, two in zip(rates[plain], rates[chosen], strict=True))
    medians = [f"{statistics.median(found):.1f}" for found in rates.values()]
    return (
        f"| {backbone} | {size} | {medians[0]} | {chosen.engine_name} | {medians[1]} | {ratio:.2f} | {difference:.0e} |"
    )


def _seconds(classifier: Classifier, images: NDArray[np.uint8], times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        classify_all(classifier, images)
    return time.perf_counter() - begun


def main() -> int:
    """Write a table, a line as soon as it is known."""
    keep_batches_apart()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backbones", nargs="*", default=sorted(BACKBONES))
    sys.stdout.write(
        "| backbone | pixels | TensorFlow, images/s | taken | images/s | ratio | largest difference |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    # A process each: TensorFlow keeps what a large network took, and the next ones would not fit beside it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as each:
        for line in each.map(measure, parser.parse_args().backbones):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
