"""The commands that look or intervene: status, export, verify, pause, cancel, retry; imported when one is called."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine

from db.audit import chain_head, has_head, record_action, verify_chain
from db.batches import get_batch
from db.control import cancel_batch, pause_batch, retry_batch
from db.health import check_batch
from db.results import ReportRow, count_digests
from db.summaries import list_summaries
from db.tables import ItemState
from producer.drift import read_drift
from producer.errors import EXIT_DONE, EXIT_SOME_FAILED, UsageProblem
from producer.export import FORMATS, NOTICE
from producer.ledger import Place, open_existing, read_place
from producer.meter import Meter
from producer.progress import ProgressBar, await_batch, count_outcomes
from producer.rehash import rehash_files
from producer.report import printable, status_table, summaries_table, write_summary
from producer.status import batch_status, find_batch_row
from producer.terminal import name_actor, open_console, print_json

#: Changed files that are named on the terminal.
_SHOWN_FILES = 20

#: Rows of an export after which its progress is shown.
_ROWS_A_LOOK = 1000

#: What `verify --rehash` finds, in words.
_DIFFERENCES = {
    "changed_file": "Files that are not what was scored.",
    "missing_file": "Files that were scored and are gone.",
    "unreadable_file": "Files that were scored and cannot be read: mend their permissions, or look at the disk.",
}


def show_status(batch_id: int | None, *, watch: bool, as_json: bool) -> int:
    """Do `lesion-screen status`.

    Args:
        batch_id: The batch; None means all, and the newest where it is watched or told to a program.
        watch: Go on until no item is open.
        as_json: Print JSON, with `watch` a line a second.

    Returns:
        The exit code.
    """
    engine = open_existing(read_place())
    batch = find_batch_row(engine, batch_id)
    if not watch:
        status = batch_status(engine, batch.id)
        warning, drift = read_drift(engine, batch.id)
        if as_json:
            print_json({**status.as_json(), "drift": drift})
            return EXIT_DONE
        console = Console()
        if batch_id is None:
            console.print(summaries_table(list_summaries(engine)))
        else:
            console.print(status_table(status, batch.state.value, printable(batch.name)))
        if warning:
            console.print(warning, highlight=False)
        return EXIT_DONE
    if as_json:
        await_batch(engine, batch.id, keep_running=_nothing, on_status=lambda status: print_json(status.as_json()))
        return EXIT_DONE
    console = open_console()
    with ProgressBar(console, batch.items) as bar:
        batch, status = await_batch(
            engine,
            batch.id,
            keep_running=_nothing,
            on_status=bar.show_status,
            on_trouble=lambda sentence: console.print(f"[yellow]{sentence}[/]", highlight=False),
        )
    Console().print(status_table(status, batch.state.value, printable(batch.name)))
    return EXIT_DONE


def pause(batch_id: int) -> int:
    """Do `lesion-screen pause`.

    Args:
        batch_id: The batch.

    Returns:
        The exit code.
    """
    return _control(batch_id, pause_batch, "paused; chunks in hand are finished")


def cancel(batch_id: int) -> int:
    """Do `lesion-screen cancel`.

    Args:
        batch_id: The batch.

    Returns:
        The exit code.
    """
    return _control(batch_id, cancel_batch, "cancelled; its open items stay open")


def retry(batch_id: int, reason: str | None) -> int:
    """Do `lesion-screen retry`.

    Args:
        batch_id: The batch.
        reason: Only items with this reason code; None takes all.

    Returns:
        The exit code.
    """
    engine, console = open_existing(read_place()), open_console()
    retried = retry_batch(engine, batch_id, name_actor(), reason=reason)
    console.print(f"{retried.reopened:,} items of batch {batch_id} are open again.", highlight=False)
    if retried.running:
        console.print(f"{retried.running:,} are in chunks that a worker holds; retry them when it is done.")
    if retried.without_file:
        console.print(
            f"{retried.without_file:,} rows name no file that was there; `lesion-screen run` on the archive finds it."
        )
    if retried.reopened:
        console.print(f"`lesion-screen resume {batch_id}` screens them.", highlight=False)
    return EXIT_DONE


def _control(batch_id: int, act: Callable[[Engine, int, str], bool], what: str) -> int:
    engine = open_existing(read_place())
    changed = act(engine, batch_id, name_actor())
    verb = "is" if changed else "was already"
    open_console().print(
        f"Batch {batch_id} {verb} {what}. `lesion-screen resume {batch_id}` goes on with it.", highlight=False
    )
    return EXIT_DONE


def export(batch_id: int, kind: str, out: Path) -> int:
    """Do `lesion-screen export`.

    Args:
        batch_id: The batch.
        kind: One of `FORMATS`.
        out: The file.

    Returns:
        The exit code.
    """
    console = open_console()
    engine = open_existing(read_place())
    status = batch_status(engine, batch_id)
    # Before the first row leaves: what fails half-way was begun all the same.
    head = record_action(engine, name_actor(), "export_batch", f"batch {batch_id}", kind)
    rows = _write_rows(engine, batch_id, kind, out, status.found, console)
    if kind != "parquet":
        # A CSV file has no room for prior, model and notice.
        write_summary(engine, batch_id, out.with_name(f"{out.name}.summary.json"), {})
    console.print(f"{rows:,} rows written. {NOTICE}", highlight=False)
    console.print(f"Head of the audit trail: {head}", highlight=False, soft_wrap=True)
    if kind == "isic" and rows < status.found:
        console.print(f"{status.found - rows:,} images without a verdict have no row.", highlight=False)
    if status.open:
        console.print(f"Batch {batch_id} is not finished: {status.open:,} items are open.", highlight=False)
    return EXIT_DONE


def _write_rows(engine: Engine, batch_id: int, kind: str, out: Path, total: int, console: Console) -> int:
    counts = dict.fromkeys(map(str, ItemState), 0)
    with Meter(console, "Writing", "images", total) as meter:

        def note(row: ReportRow) -> None:
            counts[row.state] += 1
            written = sum(counts.values())
            if written % _ROWS_A_LOOK == 0:
                meter.show(written, outcomes=count_outcomes(counts))

        return FORMATS[kind](engine, batch_id, out, note)


def verify(batch_id: int, *, rehash: bool, as_json: bool) -> int:
    """Do `lesion-screen verify`.

    Args:
        batch_id: The batch.
        rehash: Read the files again and compare digests.
        as_json: Print JSON alone.

    Returns:
        0 only if everything holds.
    """
    console = open_console(quiet=as_json)
    place = read_place()
    engine = open_existing(place)
    findings = {finding.name: (finding.count, finding.detail) for finding in check_batch(engine, batch_id)}
    status = batch_status(engine, batch_id)
    total = status.open + status.done + status.referred + status.rejected + status.quarantined
    if total != status.found:
        findings["counts_add_up"] = (abs(total - status.found), "The five outcomes do not add up to what was found.")
    if rehash:
        findings |= _rehash(engine, place, batch_id, console)
    if as_json:
        found = [{"name": name, "count": count, "detail": text} for name, (count, text) in findings.items()]
        print_json({"batch": batch_id, "sound": not findings, "findings": found})
    for name, (count, text) in findings.items():
        console.print(f"[red]{name}[/] ({count:,}): {text}", highlight=False)
    if not findings:
        console.print(
            f"Batch {batch_id} is sound: {status.found:,} found = {status.open:,} open + {status.done:,} done + "
            f"{status.referred:,} referred + {status.rejected:,} rejected + {status.quarantined:,} quarantined.",
            highlight=False,
        )
    return EXIT_SOME_FAILED if findings else EXIT_DONE


def verify_audit(head: str | None, *, as_json: bool) -> int:
    """Do `lesion-screen verify --audit`.

    Args:
        head: A head that was printed before, kept outside of the ledger; None checks the chain in itself.
        as_json: Print JSON alone.

    Returns:
        0 only if no entry was changed or removed, as far as the head tells.
    """
    console = open_console(quiet=as_json)
    engine = open_existing(read_place())
    findings = []
    if not verify_chain(engine):
        findings.append(("audit_chain_is_intact", "An entry of the audit trail was changed, inserted or removed."))
    if head is not None and not has_head(engine, head):
        findings.append(("audit_head_is_known", "The trail was cut off, or written anew, after that head was printed."))
    newest = chain_head(engine)
    if as_json:
        found = [{"name": name, "detail": detail} for name, detail in findings]
        print_json({"sound": not findings, "head": newest, "findings": found})
    for name, detail in findings:
        console.print(f"[red]{name}[/]: {detail}", highlight=False)
    if not findings:
        console.print(f"The audit trail is sound; its head is {newest}", highlight=False, soft_wrap=True)
        if head is None:
            console.print("Whether its end was cut off can only be told with --head and a head that was kept.")
    return EXIT_SOME_FAILED if findings else EXIT_DONE


def _rehash(engine: Engine, place: Place, batch_id: int, console: Console) -> dict[str, tuple[int, str]]:
    root = place.worker_settings.archive_root(get_batch(engine, batch_id).source)
    if root is None:
        raise UsageProblem("This machine does not know where the archive is; name it in WORKER_ARCHIVE_ROOTS.")
    counts = dict.fromkeys(_DIFFERENCES, 0)
    with Meter(console, "Reading files again", "images", count_digests(engine, batch_id)) as meter:
        for difference in rehash_files(engine, batch_id, root, meter.show):
            counts[difference.kind] += 1
            if sum(counts.values()) <= _SHOWN_FILES:
                console.print(f"  {difference.kind}: {printable(difference.path)}", highlight=False)
    return {kind: (count, _DIFFERENCES[kind]) for kind, count in counts.items() if count}


def _nothing() -> None:
    return
