"""Drift as people read it: what `status` warns of, and the command that shows it and accepts a reference."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from db.drift import LEAST_IMAGES, DriftRow, accept_reference, get_drift
from producer.errors import EXIT_DONE, UsageProblem
from producer.ledger import open_existing, read_place
from producer.terminal import name_actor, open_console, print_json

#: From these indices on a shift counts as moderate, and as major (Siddiqi 2006, Credit Risk Scorecards).
_MODERATE: Final = 0.1
_MAJOR: Final = 0.25

#: The features in words.
FEATURE_WORDS: Final = {
    "age": "age",
    "localization": "body site",
    "malignant_score": "malignant score",
    "distance": "distance from the images of training",
}


def show_drift(batch_id: int, *, accept: bool, why: str | None, as_json: bool) -> int:
    """Do `lesion-screen drift`.

    Args:
        batch_id: The batch.
        accept: Compare later batches of its model with it.
        why: The reason, for the audit trail.
        as_json: Print JSON alone.

    Returns:
        The exit code.
    """
    engine = open_existing(read_place())
    if accept:
        fresh = accept_reference(engine, batch_id, actor=name_actor(), why=why or "")
        verb = "are from now on" if fresh else "were already"
        told = f"Later batches of its model {verb} compared with batch {batch_id}."
        open_console(quiet=as_json).print(told, highlight=False)
    row = get_drift(engine, batch_id)
    if row is None:
        raise UsageProblem(
            f"Nothing was measured of batch {batch_id}: the feeder does so once it is finished, if its model states "
            "what it was judged on."
        )
    if as_json:
        print_json(drift_as_json(row))
        return EXIT_DONE
    table = Table(title=f"Batch {batch_id} against {describe_reference(row)}", title_justify="left")
    table.add_column("feature")
    table.add_column("PSI", justify="right")
    table.add_column("shift")
    for feature, index in row.indices.items():
        table.add_row(FEATURE_WORDS.get(feature, feature), f"{index:.3f}", judge_index(row, index))
    console = Console()
    console.print(table)
    warning = warn_of_drift(row)
    if warning:
        console.print(warning, highlight=False)
    if row.images < LEAST_IMAGES:
        console.print(f"{row.images:,} images are too few to tell: it takes {LEAST_IMAGES}.", highlight=False)
    return EXIT_DONE


def read_drift(engine: Engine, batch_id: int) -> tuple[str | None, Mapping[str, Any] | None]:
    """Read what `status` says of a batch's drift.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        A warning and the figures, each None where there is none.
    """
    row = get_drift(engine, batch_id)
    return (None, None) if row is None else (warn_of_drift(row), drift_as_json(row))


def warn_of_drift(row: DriftRow) -> str | None:
    """Say in a plain sentence what is unlike the reference.

    Args:
        row: What was measured.

    Returns:
        The sentence, or None where nothing is, or too little was screened to tell.
    """
    shifted = {FEATURE_WORDS.get(name, name): index for name, index in row.indices.items() if index >= _MODERATE}
    if row.images < LEAST_IMAGES or not shifted:
        return None
    what = ", ".join(f"{name} (PSI {index:.2f})" for name, index in shifted.items())
    return (
        f"[yellow]Drift:[/] unlike {describe_reference(row)} in {what}. Its figures may not hold for these images: "
        f"look at a sample before its ranking is relied on. `lesion-screen drift {row.batch_id}` shows more."
    )


def drift_as_json(row: DriftRow) -> dict[str, Any]:
    """Return what `--json` prints of a batch's drift.

    Args:
        row: What was measured.

    Returns:
        Its figures, with a verdict for each feature.
    """
    return asdict(row) | {"verdicts": {name: judge_index(row, index) for name, index in row.indices.items()}}


def judge_index(row: DriftRow, index: float) -> str:
    """Name how large a shift is.

    Args:
        row: What was measured.
        index: One of its indices.

    Returns:
        A word or three.
    """
    if row.images < LEAST_IMAGES:
        return "too few images"
    if index < _MODERATE:
        return "none"
    return "moderate" if index < _MAJOR else "major"


def describe_reference(row: DriftRow) -> str:
    """Name what a batch was compared with.

    Args:
        row: What was measured.

    Returns:
        A part of a sentence.
    """
    return "what its model was judged on" if row.compared_with is None else f"batch {row.compared_with}"
