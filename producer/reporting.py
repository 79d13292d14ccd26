"""The command that writes reports: of a batch as a worklist, of a model as its evaluation; imported when called."""

from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine

from db.audit import record_action
from db.batches import BatchRow, get_batch
from db.models import active_model, find_model
from producer.errors import EXIT_DONE, UsageProblem
from producer.evaluation import PAGE, write_evaluation
from producer.export import NOTICE
from producer.ledger import Place, open_existing, read_place
from producer.local import LocalStack
from producer.meter import Meter
from producer.rendering import await_drawn, find_undrawn, ring_undrawn
from producer.report import printable
from producer.site import ReportOptions, write_report
from producer.terminal import name_actor, open_console, say_doing


def report(batch_id: int, options: ReportOptions, *, draw_all: bool, workers: int | None) -> int:
    """Do `lesion-screen report`.

    Args:
        batch_id: The batch.
        options: Where to, and how much.
        draw_all: Have the pictures drawn that are missing.
        workers: Worker processes of our own for that; None means 1, or none where a broker is set.

    Returns:
        The exit code.
    """
    console, place = open_console(), read_place()
    engine = open_existing(place)
    batch = get_batch(engine, batch_id)
    # Before the first row leaves: what fails half-way was begun all the same.
    head = record_action(engine, name_actor(), "export_batch", f"batch {batch_id}", "report")
    if draw_all:
        _draw(engine, place, batch, workers, console)
    with Meter(console, "Writing the report", "lesions") as meter:
        written = write_report(engine, batch_id, place.shelf, options, meter.show)
    where = printable(str(options.out / "index.html"))
    console.print(f"{written.lesions:,} lesions are ranked in {where}. {NOTICE}", highlight=False, soft_wrap=True)
    if written.unread:
        console.print(f"{written.unread:,} images were not assessed and must be read by hand.", highlight=False)
    if written.left_out:
        console.print(f"{written.left_out:,} lesions rank lower and were left out; --top takes more.", highlight=False)
    if written.open:
        console.print(f"{written.open:,} images are not screened yet; make the report again when they are.")
    console.print("It names patients: keep it where the archive may be kept.")
    console.print(f"Head of the audit trail: {head}", highlight=False, soft_wrap=True)
    return EXIT_DONE


def report_model(wanted: str, out: Path) -> int:
    """Do `lesion-screen report --model`.

    Args:
        wanted: The model's digest or the beginning of it, or "active".
        out: The folder.

    Returns:
        The exit code.
    """
    console, place = open_console(), read_place()
    engine = open_existing(place)
    model = active_model(engine) if wanted == "active" else find_model(engine, wanted)
    if model is None:
        raise UsageProblem("No model is active; name one by the first digits of its digest.")
    # Before the first row leaves, as for a batch.
    head = record_action(engine, name_actor(), "export_model", f"model {model.digest}", "report")
    with say_doing(console, "Writing the report"):
        mistakes = write_evaluation(engine, model, place.shelf, out)
    where = printable(str(out / PAGE))
    console.print(f"Model {model.digest[:12]} is evaluated in {where}. {NOTICE}", highlight=False, soft_wrap=True)
    if mistakes:
        console.print("It shows images of patients: keep it where the archive may be kept.")
    console.print(f"Head of the audit trail: {head}", highlight=False, soft_wrap=True)
    return EXIT_DONE


def _draw(engine: Engine, place: Place, batch: BatchRow, workers: int | None, console: Console) -> None:
    undrawn = find_undrawn(engine, batch.id, place.shelf)
    if not undrawn.count:
        return
    own = workers if workers is not None else int(place.broker_url is None)
    with (
        LocalStack(place.home, workers=own, broker_url=place.broker_url) as stack,
        Meter(console, "Drawing", "images", undrawn.count) as meter,
    ):
        while (address := stack.address) is None:
            stack.keep_running()
        ring_undrawn(address, batch, undrawn)
        left = await_drawn(
            address,
            undrawn,
            place.shelf,
            keep_running=stack.keep_running,
            on_drawn=meter.show,
        )
    if left:
        console.print(
            f"{left:,} images were not drawn: no worker listens, or their files are gone or not what was scored.",
            highlight=False,
        )
