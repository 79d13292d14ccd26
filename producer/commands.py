"""The commands that screen: run, submit and resume; imported only when one of them is called."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy import Engine

from db.audit import record_action
from db.batches import BatchRow, get_batch
from db.control import resume_batch
from db.settings import read_settings
from db.tables import BatchState
from producer.archive import Archive, open_archive
from producer.errors import EXIT_DONE, EXIT_SOME_FAILED, ServiceProblem, UsageProblem
from producer.forecast import make_forecast, print_forecast
from producer.ledger import Place, open_existing, open_prepared, read_place
from producer.local import LocalStack, is_stack_running
from producer.manifest import Manifest
from producer.meter import Meter
from producer.progress import NOBODY_LISTENS, STILL_STARTING, ProgressBar, await_batch, count_outcomes
from producer.report import print_problems, print_summary, printable, write_problems, write_results
from producer.settings import ProducerSettings
from producer.status import Status, batch_status, is_waiting
from producer.submit import Submitted, ring_open_chunks, submit_manifest
from producer.table import parse_columns
from producer.terminal import name_actor, open_console, print_json
from worker.errors import BrokerUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveOptions:
    """What `run` and `submit` are told about an archive."""

    #: A folder, `s3://bucket/prefix`, or `dicomweb://host/path?filters`.
    archive: Path | str
    #: A file, or `s3://bucket/key`.
    metadata: Path | str | None
    columns: str | None
    name: str | None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """Where the user wants everything listed that is odd, and by which option that is said."""

    file: Path | None
    option: str = "--problems"

    def describe(self) -> str:
        """Say which file has it all, as a sentence's subject."""
        if self.file is not None:
            return printable(str(self.file))
        return "problems.csv in a folder given with --out" if self.option == "--out" else f"{self.option} FILE"


def screen_archive(options: ArchiveOptions, *, workers: int | None, out: Path | None, as_json: bool) -> int:
    """Do `lesion-screen run`.

    Args:
        options: The archive.
        workers: Worker processes of our own; None means 1, or none where a broker is set.
        out: Folder for the results.
        as_json: Print JSON alone.

    Returns:
        The exit code.
    """
    console = open_console(quiet=as_json)
    place = read_place()
    archive = _open_archive(options, place)
    # On real servers too: whoever runs a cluster's first batch from here need not know of another command.
    engine, model = open_prepared(place, register=True)
    submitted = _submit(
        engine, archive, options, model, console, _Listing(file=out and out / "problems.csv", option="--out")
    )
    batch, status = get_batch(engine, submitted.batch), batch_status(engine, submitted.batch)
    if status.finished:
        if submitted.existed:
            console.print(f"Nothing to do: batch {batch.id} has screened this very archive with this very model.")
    elif is_waiting(batch):
        batch, status = _screen(engine, place, batch, workers, console)
    extra = {"problems": submitted.problems, "ignored": submitted.ignored}
    return _conclude(engine, batch, status, console, out=out, as_json=as_json, extra=extra)


def _screen(
    engine: Engine, place: Place, batch: BatchRow, workers: int | None, console: Console
) -> tuple[BatchRow, Status]:
    if place.broker_url is not None:
        # A broker that is away is said at once; nobody should watch a bar that cannot move.
        _ring(engine, place.broker_url, batch.id)
    own = workers if workers is not None else int(place.broker_url is None)
    stack = LocalStack(place.home, workers=own, broker_url=place.broker_url)
    with stack, ProgressBar(console, batch.items) as bar:
        if stack.joined:
            console.print("Another run has started the workers of this home; this batch joins it.")
        ended = await_batch(
            engine,
            batch.id,
            keep_running=stack.keep_running,
            on_status=bar.show_status,
            on_progress=stack.note_progress,
            on_trouble=lambda sentence: console.print(f"[yellow]{sentence}[/]", highlight=False),
            unheard=STILL_STARTING if own else NOBODY_LISTENS,
        )
        if stack.restarts:
            console.print(f"{stack.restarts} process(es) died on the way and were started again.")
    return ended


def _conclude(
    engine: Engine,
    batch: BatchRow,
    status: Status,
    console: Console,
    *,
    out: Path | None,
    as_json: bool,
    extra: Mapping[str, Any],
) -> int:
    if out is not None:
        head = record_action(engine, name_actor(), "export_batch", f"batch {batch.id}", "run --out")
        console.print(f"Head of the audit trail: {head}", highlight=False, soft_wrap=True)
        write_results(engine, batch.id, out, extra)
    if as_json:
        print_json(status.as_json())
    else:
        print_summary(Console(), engine, batch.id)
        if out is not None:
            console.print(f"Results are in {printable(str(out))}: results.csv, summary.json, problems.csv.")
    if not status.finished:
        console.print(
            f"Batch {batch.id} is {batch.state.value}; `lesion-screen resume {batch.id}` goes on with it.",
            highlight=False,
        )
        return EXIT_SOME_FAILED
    return status.exit_code


def foresee(options: ArchiveOptions, *, problems: Path | None) -> int:
    """Do `lesion-screen submit --dry-run`: say what an archive would cost, and write nothing.

    Args:
        options: The archive.
        problems: File that lists what is odd.

    Returns:
        The exit code.
    """
    console, place = open_console(), read_place()
    with _reading(_open_archive(options, place), console) as (manifest, _):
        forecast = make_forecast(place, manifest)
        _tell(console, manifest, manifest.problem_counts(), _Listing(file=problems))
    print_forecast(console, forecast)
    print_json(forecast.as_json())
    return EXIT_DONE


def submit(options: ArchiveOptions, *, problems: Path | None) -> int:
    """Do `lesion-screen submit`.

    Args:
        options: The archive.
        problems: File that lists what is odd.

    Returns:
        The exit code.
    """
    console = open_console()
    place = read_place()
    archive = _open_archive(options, place)
    engine, model = open_prepared(place, register=False)
    submitted = _submit(engine, archive, options, model, console, _Listing(file=problems))
    if submitted.existed:
        console.print(f"Nothing was added: batch {submitted.batch} is this very archive under this very model.")
    # First of all: what was written is written, whether or not anybody can be rung.
    print_json({"batch": submitted.batch, "items": submitted.items, "chunks": submitted.chunks})
    if place.broker_url is not None:
        _ring(engine, place.broker_url, submitted.batch)
    elif is_stack_running(place.home):
        console.print("The stack of this home is running and takes the batch up by itself.")
    else:
        console.print(
            f"The batch is in the ledger. `lesion-screen resume {submitted.batch}` starts the workers of this machine; "
            "for a cluster set WORKER_BROKER_URL and DB_URL, and run `python -m worker.feeder` and `make worker`.",
            highlight=False,
        )
    return EXIT_DONE


def _ring(engine: Engine, broker_url: str, batch_id: int) -> None:
    try:
        ring_open_chunks(engine, broker_url)
    except BrokerUnavailable as error:
        raise ServiceProblem(
            f"{error} The batch is safe in the ledger: the feeder rings for it once Redis is back, "
            f"and so does `lesion-screen resume {batch_id}`."
        ) from error


def resume(batch_id: int, *, workers: int | None, as_json: bool) -> int:
    """Do `lesion-screen resume`.

    Args:
        batch_id: The batch.
        workers: Worker processes of our own; None means 1, or none where a broker is set.
        as_json: Print JSON alone.

    Returns:
        The exit code.
    """
    console = open_console(quiet=as_json)
    place = read_place()
    engine = open_existing(place)
    batch = get_batch(engine, batch_id)
    if batch.state == BatchState.LOADING:
        raise UsageProblem(
            f"Batch {batch_id} was never read to its end; run `lesion-screen submit` on its archive again."
        )
    if resume_batch(engine, batch_id, name_actor()):
        console.print(f"Batch {batch_id} was {batch.state.value} and is open again.")
    batch, status = get_batch(engine, batch_id), batch_status(engine, batch_id)
    if status.finished:
        console.print(f"Nothing to do: batch {batch_id} is finished.")
    elif place.broker_url is not None and not workers:
        _ring(engine, place.broker_url, batch_id)
        if as_json:
            print_json(status.as_json())
        console.print(f"Rung for batch {batch_id}; `lesion-screen status {batch_id} --watch` shows how it goes.")
        return EXIT_DONE
    else:
        batch, status = _screen(engine, place, batch, workers, console)
    return _conclude(engine, batch, status, console, out=None, as_json=as_json, extra={})


def _open_archive(options: ArchiveOptions, place: Place) -> Archive:
    columns, settings = parse_columns(options.columns), place.worker_settings
    archive = open_archive(
        options.archive, options.metadata, columns, endpoint=settings.s3_endpoint, access=settings.pacs_access()
    )
    if isinstance(archive.root, Path) and place.home.resolve().is_relative_to(archive.root):
        raise UsageProblem("LESION_SCREEN_HOME lies inside the archive, which is only ever read; set it elsewhere.")
    return archive


def _submit(
    engine: Engine,
    archive: Archive,
    options: ArchiveOptions,
    model: str,
    console: Console,
    listing: _Listing,
) -> Submitted:
    settings = read_settings(ProducerSettings)
    with _reading(archive, console) as (manifest, meter):
        meter.begin("Writing the ledger", "images", manifest.count())
        submitted = submit_manifest(
            engine,
            manifest,
            name=options.name or archive.root.name or "archive",
            model_digest=model,
            priority=options.priority,
            chunk_items=settings.chunk_items,
            on_items=lambda count, rejected: meter.show(
                count, outcomes=count_outcomes({"to screen": count - rejected, "rejected": rejected})
            ),
            actor=name_actor(),
        )
        _tell(console, manifest, submitted.problems, listing)
    return submitted


@contextmanager
def _reading(archive: Archive, console: Console) -> Iterator[tuple[Manifest, Meter]]:
    with Meter(console, "Reading the archive", "files and rows") as meter, Manifest(archive, meter.show) as manifest:
        yield manifest, meter


def _tell(console: Console, manifest: Manifest, counts: Mapping[str, int], listing: _Listing) -> None:
    print_problems(console, counts, manifest.problems(), whole=listing.describe())
    if listing.file is not None:
        write_problems(listing.file, manifest.problems(), option=listing.option)
    if manifest.ignored:
        kinds = ", ".join(f"{count:,} {printable(ending)}" for ending, count in manifest.ignored.items())
        console.print(f"Ignored files that are no images: {kinds}.", highlight=False)
