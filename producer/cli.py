"""The command line `lesion-screen`: options, exit codes and plain sentences; the work is in `producer.commands`."""

import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from producer.cli_dicom import dicom
from producer.cli_models import model_commands
from producer.cli_reports import report
from producer.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, EXIT_USAGE, ProducerError
from producer.examples import add_examples

# Nothing else is imported here: `--help` answers in a third of a second, without pandas, SQLAlchemy and Celery.

#: SQLite primary result codes of a folder that takes no file, or none that large.
_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})


class _PlainGroup(click.Group):
    """A group whose errors are one plain sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _signals_end_us():
                ctx.exit(int(super().invoke(ctx) or 0))
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("Stopped. Nothing is lost: the same command or `lesion-screen resume` goes on.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:
            # The edge of the program: what a person can mend is a sentence, everything else is a bug and stays one.
            sentence = _explain(error)
            if sentence is None:
                raise
            click.echo(f"Error: {sentence[1]}", err=True)
            ctx.exit(sentence[0])


def _explain(error: Exception) -> tuple[int, str] | None:
    if isinstance(error, ProducerError):
        return error.exit_code, str(error)
    from db.errors import LedgerError

    if isinstance(error, LedgerError):
        return EXIT_USAGE, str(error)
    from worker.errors import WorkerError

    if isinstance(error, WorkerError):
        return EXIT_UNAVAILABLE, str(error)
    from db.refusals import explain_refusal

    database = explain_refusal(error)
    if database is not None:
        return EXIT_UNAVAILABLE, database
    if isinstance(error, (OSError, sqlite3.Error)):
        return _explain_disk(error)
    return None


def _explain_disk(error: OSError | sqlite3.Error) -> tuple[int, str] | None:
    if isinstance(error, OSError):
        return EXIT_UNAVAILABLE, f"The system refused: {error.strerror or type(error).__name__}. Check disk and rights."
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_ROOM:
        return None
    # The ledger's errors are SQLAlchemy's; these are of what an archive is staged in.
    return EXIT_UNAVAILABLE, (
        "The temporary folder is full or cannot be written; make room, or set TMPDIR to a folder with room."
    )


@contextmanager
def _signals_end_us() -> Iterator[None]:
    # SIGTERM and a closed terminal must stop the child processes as Ctrl-C does.
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@click.group(cls=_PlainGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lesion-screen")
def cli() -> None:
    """Screen archives of dermoscopic images, the suspicious ones first.

    Not a medical device. Exit codes: 0 done, 1 some images were rejected or quarantined, 2 usage, 3 a service is
    unavailable.
    """


class _Place(click.Path):
    """A path, or an address of object storage or of a PACS, which stays a text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.lower().startswith(("s3://", "dicomweb://")):
            return value
        return super().convert(value, param, ctx)


_archive = click.argument("archive", type=_Place(path_type=Path))
_metadata = click.option("--metadata", type=_Place(path_type=Path), help="The metadata table (CSV).")
_columns = click.option(
    "--columns",
    help="What the table's columns mean: image=…,age=…,sex=…,localization=…,lesion_id=…,patient_ref=…,dx=…",
)
_name = click.option("--name", help="What to call the batch; the folder's name by default.")
_priority = click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
_workers = click.option(
    "--workers",
    type=click.IntRange(0, 256),
    help="Worker processes to start here: 1 by default, none where WORKER_BROKER_URL is set.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
_batch = click.argument("batch", type=click.IntRange(1, 2**63 - 1))


@cli.command()
@_archive
@_metadata
@_columns
@_name
@_priority
@_workers
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.csv, summary.json and problems.csv.")
@_json
def run(
    archive: Path | str,
    metadata: Path | str | None,
    columns: str | None,
    name: str | None,
    priority: int,
    workers: int | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Screen ARCHIVE, a folder, s3://BUCKET/PREFIX or dicomweb://HOST/PATH?FILTERS, and wait."""
    from producer import commands

    options = commands.ArchiveOptions(archive=archive, metadata=metadata, columns=columns, name=name, priority=priority)
    return commands.screen_archive(options, workers=workers, out=out, as_json=as_json)


@cli.command()
@_archive
@_metadata
@_columns
@_name
@_priority
@click.option("--problems", type=click.Path(path_type=Path), help="File to list every odd row in.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost, in hours and disk, and write nothing.")
def submit(
    archive: Path | str,
    metadata: Path | str | None,
    columns: str | None,
    name: str | None,
    priority: int,
    problems: Path | None,
    dry_run: bool,
) -> int:
    """Write ARCHIVE, a folder, s3://BUCKET/PREFIX or dicomweb://HOST/PATH?FILTERS, into the ledger and ring."""
    from producer import commands

    options = commands.ArchiveOptions(archive=archive, metadata=metadata, columns=columns, name=name, priority=priority)
    return (commands.foresee if dry_run else commands.submit)(options, problems=problems)


@cli.command()
@click.argument("batch", type=click.IntRange(1, 2**63 - 1), required=False)
@click.option("--watch", is_flag=True, help="Go on until no item is open.")
@_json
def status(batch: int | None, watch: bool, as_json: bool) -> int:
    """Count BATCH by outcome, or list every batch with its counts.

    With --watch or --json it is the newest one that counts where none is named.
    """
    from producer import inspection

    return inspection.show_status(batch, watch=watch, as_json=as_json)


_serving = click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Screening workers to start."
)


@cli.command()
@_serving
def up(workers: int) -> int:
    """Start this machine's services in the background."""
    from producer import serving

    return serving.up(workers=workers)


@cli.command()
def down() -> int:
    """Stop this machine's services."""
    from producer import serving

    return serving.down()


@cli.command()
@_serving
def serve(workers: int) -> int:
    """Run this machine's services until told to stop, for systemd say."""
    from producer import serving

    return serving.serve(workers=workers)


@cli.command()
@click.option("--quick", is_flag=True, help="Load neither TensorFlow nor the model.")
@_json
def doctor(quick: bool, as_json: bool) -> int:
    """Look at everything that screening needs, and say what to do."""
    from producer import doctor as command

    return command.examine(quick=quick, as_json=as_json)


@cli.command()
@_batch
@_workers
@_json
def resume(batch: int, workers: int | None, as_json: bool) -> int:
    """Go on with BATCH, also after a pause."""
    from producer import commands

    return commands.resume(batch, workers=workers, as_json=as_json)


@cli.command()
@_batch
def pause(batch: int) -> int:
    """Let no worker take another chunk of BATCH."""
    from producer import inspection

    return inspection.pause(batch)


@cli.command()
@_batch
def cancel(batch: int) -> int:
    """Stop BATCH at once."""
    from producer import inspection

    return inspection.cancel(batch)


@cli.command()
@_batch
@click.option("--reason", help="Only items with this reason code, such as missing_image.")
def retry(batch: int, reason: str | None) -> int:
    """Open BATCH's failed items again.

    Those that were rejected or quarantined, once the cause is mended; verdicts stay.
    """
    from producer import inspection

    return inspection.retry(batch, reason)


@cli.command()
@_batch
@click.option("--format", "kind", type=click.Choice(["csv", "parquet", "isic"]), default="csv", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
def export(batch: int, kind: str, out: Path) -> int:
    """Write BATCH's results as a table."""
    from producer import inspection

    return inspection.export(batch, kind, out)


@cli.command()
@click.argument("batch", type=click.IntRange(1, 2**63 - 1), required=False)
@click.option("--rehash", is_flag=True, help="Read the files again and compare them with what was scored.")
@click.option("--audit", is_flag=True, help="Check the audit trail instead of a batch.")
@click.option("--head", help="With --audit: a head printed by an earlier export or report.")
@_json
def verify(batch: int | None, rehash: bool, audit: bool, head: str | None, as_json: bool) -> int:
    """Check BATCH's counts, or the audit trail.

    Exits with 0 only if every invariant of the ledger holds.
    """
    if (batch is None) != audit or (head is not None and not audit) or (rehash and audit):
        raise click.UsageError("Give a batch, with --rehash perhaps, or --audit, with --head perhaps.")
    from producer import inspection

    if batch is None:
        return inspection.verify_audit(head, as_json=as_json)
    return inspection.verify(batch, rehash=rehash, as_json=as_json)


_yes = click.option("--yes", is_flag=True, help="Do not ask.")
#: A century is kept by nobody, and dates end.
_MOST_DAYS = 36_500


@cli.command()
@click.argument("patient_ref")
@_yes
def forget(patient_ref: str, yes: bool) -> int:
    """Erase a patient from the ledger, for good.

    PATIENT_REF is what the archive's table calls the patient; - reads it from standard input.
    """
    from producer import erasing

    return erasing.forget(patient_ref, sure=yes)


def _days(_context: click.Context, _option: click.Parameter, value: str) -> int:
    number = value.removesuffix("d")
    # By its length first: of thousands of digits no number is made.
    sound = number.isascii() and number.isdecimal() and len(number) <= len(str(_MOST_DAYS))
    if not sound or not 1 <= int(number) <= _MOST_DAYS:
        raise click.BadParameter(f'give days, from 1 to {_MOST_DAYS}, such as "365d".')
    return int(number)


@cli.command()
@click.option("--older-than", "days", required=True, callback=_days, help='Days since it was submitted, as in "365d".')
@_yes
def purge(days: int, yes: bool) -> int:
    """Erase old batches, for good.

    Those that are finished or cancelled and have outlived their retention.
    """
    from producer import erasing

    return erasing.purge(days, sure=yes)


for _command in (*model_commands(), report, dicom):
    cli.add_command(_command)
add_examples(cli)


def main() -> None:
    """Run the command line; of a bug the place is named, and never the text, which may quote a row."""
    try:
        sys.exit(cli.main())
    except Exception as error:  # noqa: BLE001 - the edge of the program
        import traceback

        click.echo(
            f"Error: this is a bug of lesion-screen ({type(error).__qualname__}); please report it with:", err=True
        )
        for frame, line in traceback.walk_tb(error.__traceback__):
            code = frame.f_code
            click.echo(f"  {code.co_filename.rpartition('/')[2]}:{line} {code.co_name}", err=True)
        sys.exit(EXIT_BUG)


if __name__ == "__main__":
    main()
