"""The commands that erase: forget a patient, purge old batches; imported when one is called."""

import sys
import time
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console
from sqlalchemy import Engine

from db.erasure import Erased, find_outlived, forget_patient, purge_batches
from db.pictures import THUMBS, inputs_with_result
from producer.errors import EXIT_DONE, UsageProblem
from producer.ledger import open_existing, read_place
from producer.terminal import name_actor, open_console
from producer.worklist import cut
from worker.shelf import Shelf

#: A picture is drawn at most so long before its verdict is recorded, seconds, with the database away in between.
_IN_FLIGHT_SECONDS: Final = 3600

_LOOKED_UP_AT_ONCE: Final = 1000

#: Folder of maps that earlier versions drew; today's are in the ledger.
_FORMER_MAPS: Final = "maps"

#: Where else a patient may be found: this program cannot reach it.
_NOT_REACHED = (
    "Not reached: the archive itself, exports and reports that were written, backups of the ledger, and models that "
    "were trained on the images."
)


def forget(patient_ref: str, *, sure: bool) -> int:
    """Do `lesion-screen forget`.

    Args:
        patient_ref: The patient as the archive's table names it; "-" reads it from standard input.
        sure: Do not ask.

    Returns:
        The exit code.
    """
    place, console = read_place(), open_console()
    engine = open_existing(place)
    if patient_ref == "-":
        patient_ref = sys.stdin.readline().rstrip("\r\n")
    if not patient_ref:
        raise UsageProblem(
            "No patient was named, and nothing was erased; give PATIENT_REF, or a line on standard input."
        )
    _confirm("Erase everything the ledger holds of this patient? There is no way back.", sure=sure)
    erased = forget_patient(engine, patient_ref, name_actor(), remove_file=place.shelf.delete)
    sweep_pictures(engine, place.shelf)
    if erased.items:
        _report(erased, console)
    else:
        console.print("The ledger holds nothing of a patient of that name; it is compared letter by letter.")
    return EXIT_DONE


def purge(older_than_days: int, *, sure: bool) -> int:
    """Do `lesion-screen purge`.

    Args:
        older_than_days: Age of a batch since it was submitted, in days.
        sure: Do not ask.

    Returns:
        The exit code.
    """
    place, console = read_place(), open_console()
    engine = open_existing(place)
    outlived = find_outlived(engine, older_than_days)
    working = find_outlived(engine, older_than_days, unfinished=True)
    if working:
        console.print(
            f"Left, because they are not finished: batch {_list(working)}. `lesion-screen cancel` ends one.",
            highlight=False,
        )
    if outlived:
        _confirm(f"Erase batch {_list(outlived)} with everything in it? There is no way back.", sure=sure)
        _report(purge_batches(engine, older_than_days, name_actor()), console)
    else:
        console.print(f"No finished batch is older than {older_than_days} days.", highlight=False)
    # Also where nothing was left to erase: an earlier purge may have got no further than the ledger.
    sweep_pictures(engine, place.shelf)
    return EXIT_DONE


def sweep_pictures(engine: Engine, shelf: Shelf) -> int:
    """Delete pictures without a verdict, and the maps of earlier versions. Idempotent.

    A worker that dies between drawing and recording leaves a picture without a verdict.

    Args:
        engine: The ledger.
        shelf: Of the artifact store.

    Returns:
        How many files were deleted. Those of the last hour are left: their verdicts may still be on their way.
    """
    deleted, latest = 0, time.time() - _IN_FLIGHT_SECONDS
    settled = (name for name, written in shelf.names(THUMBS) if written < latest)
    for some in cut(settled, _LOOKED_UP_AT_ONCE):
        # A dot begins the name of what was being written, which is no input's.
        known = inputs_with_result(engine, some)
        for name in some:
            if name not in known:
                shelf.delete(f"{THUMBS}/{name}")
                deleted += 1
    for name, _ in shelf.names(_FORMER_MAPS):
        shelf.delete(f"{_FORMER_MAPS}/{name}")
        deleted += 1
    return deleted


def _confirm(question: str, *, sure: bool) -> None:
    if not sure and not click.confirm(question, err=True):
        raise UsageProblem("Nothing was erased.")


def _report(erased: Erased, console: Console) -> None:
    console.print(
        f"{erased.items:,} items and {erased.results:,} verdicts of batch {_list(erased.batches)} are erased.",
        highlight=False,
    )
    console.print(_NOT_REACHED)


def _list(batches: Sequence[int]) -> str:
    return ", ".join(map(str, batches))
