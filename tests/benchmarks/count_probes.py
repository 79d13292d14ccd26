"""Counts how many images of no skin a model refers.

PYTHONPATH=. python tests/benchmarks/count_probes.py ARTIFACT
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from model.artifact import shipped_artifact
from model.classifier import Classifier
from model.images import encode_image
from model.metadata import PatientMetadata
from tests.probes import DRAWN, Pixels, photographs, view_of

KNOWN = PatientMetadata(age=50, sex="female", localization="back")


def draw_probes(variants: int) -> Iterator[tuple[str, list[Pixels]]]:
    """Draw so many of each kind, and views of each photograph."""
    for name, draw in DRAWN.items():
        yield name, [draw(np.random.default_rng(seed)) for seed in range(variants)]
    for name, photo in photographs().items():
        yield name, [view_of(photo, np.random.default_rng(seed)) for seed in range(variants)]


@click.command()
@click.argument("artifact", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--variants", default=24, show_default=True, help="Images of each kind; each as JPEG and PNG.")
def main(artifact: Path | None, variants: int) -> None:
    """Count, for each kind, the images that ARTIFACT (else the shipped model) refers, with a patient and without."""
    classifier = Classifier.load(artifact or shipped_artifact())
    for name, images in draw_probes(variants):
        files = [encode_image(pixels, form) for form in ("JPEG", "PNG") for pixels in images]
        decoded = np.stack([classifier.decode(data).pixels for data in files])
        said = [
            one
            for patient in (KNOWN, PatientMetadata())
            for start in range(0, len(decoded), 8)
            for one in classifier.classify(decoded[start : start + 8], [patient] * len(decoded[start : start + 8]))
        ]
        reasons = [one.refer_reason for one in said if one.referred]
        counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons), key=str))
        click.echo(f"{name}: {len(reasons)} of {len(said)} referred ({counts or 'none'})")


if __name__ == "__main__":
    main()
