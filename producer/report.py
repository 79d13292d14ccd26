"""Reports: the summary a person reads, its ranking, and the files of `--out`."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine

from db.audit import chain_head
from db.batches import get_batch
from db.counts import count_items
from db.models import get_model
from db.results import rank_malignant
from db.summaries import BatchSummary
from producer.drift import read_drift
from producer.export import NOTICE, SCHEMA_VERSION, escape_cell, export_csv, model_prior, replace_file
from producer.manifest import Problem
from producer.status import Status, make_status

#: Problems named on the terminal; the others are counted, and listed in problems.csv.
_SHOWN_PROBLEMS = 10

#: What a reason code means, where the code does not say it.
_PLAIN = {
    "image_without_row": "images without a row (screened without metadata)",
    "missing_image": "rows whose image is missing (rejected)",
    "unsafe_path": "rows that name a path outside the archive (rejected)",
    "bad_age": "rows or DICOM objects whose age is none from 0 to 120 (screened without it)",
    "duplicate_row": "rows that repeat an earlier one",
    "conflicting_row": "rows that contradict an earlier one (the first counts)",
    "ambiguous_name": "rows whose name fits several different files (screened without metadata)",
    "several_copies": "rows whose image is there in several copies (each is screened)",
    "wrong_number_of_cells": "rows with another number of cells than the header (not used)",
    "unreadable_row": "rows that cannot be read, a quote left open perhaps (not used)",
    "no_image_named": "rows that name no image (not used)",
    "cell_too_long": "rows with a cell of more than 500 characters (screened without it)",
    "header_differs": "images whose DICOM header contradicts the table (the table counts)",
    "unknown_site": "DICOM objects whose body site is not in our table (screened without it)",
    "bad_sex": "DICOM objects whose sex is not M, F or O (screened without it)",
    "bad_uid": "DICOM objects with an identifier that is none",
    "bad_patient_id": "DICOM objects with a patient ID of more than 500 characters (screened without it)",
    "unreadable_folder": "folders that cannot be listed (not screened)",
    "study_not_listed": "studies that the PACS did not list (not screened; the same command asks for them again)",
    "no_uid": "entries of the PACS that no UID names (not screened)",
}
#: Counts of a batch, in the order in which they are shown.
_COUNTED = ("found", "open", "done", "referred", "rejected", "quarantined")

#: Of these no line of a table is to blame.
_WITHOUT_LINE = frozenset({"image_without_row", "unreadable_folder", "study_not_listed", "no_uid"})


def printable(text: str | None) -> str:
    """Make foreign text safe to print: no markup, no control characters.

    Args:
        text: For example a file name.

    Returns:
        The text as one harmless line.
    """
    plain = (text or "").encode("utf-8", "backslashreplace").decode()
    return escape("".join(letter if letter.isprintable() else "�" for letter in plain))


def print_problems(console: Console, counts: Mapping[str, int], problems: Iterable[Problem], *, whole: str) -> None:
    """Say what is odd in table and archive.

    Args:
        console: Where to.
        counts: Reason to count.
        problems: Streamed; only the first lines are read.
        whole: Where all of them are, printable, as in "--problems FILE".
    """
    if not counts:
        return
    console.print("[yellow]Noticed while reading:[/]")
    for reason, count in counts.items():
        console.print(f"  {count:>7,}  {_PLAIN.get(reason, printable(reason))}", highlight=False)
    shown = 0
    for problem in problems:
        if problem.line is None or shown == _SHOWN_PROBLEMS:
            break
        console.print(f"  line {problem.line}: {problem.reason}", highlight=False)
        shown += 1
    lines = sum(count for reason, count in counts.items() if reason not in _WITHOUT_LINE)
    if lines > shown:
        console.print(f"  … and {lines - shown:,} more; {whole} lists all.", highlight=False)


def write_problems(out: Path, problems: Iterable[Problem], *, option: str = "--problems") -> None:
    """Write every problem with its line and reason.

    Args:
        out: The file.
        problems: Streamed.
        option: What the user named the file with.

    Raises:
        UsageProblem: If the file cannot be written.
    """
    with replace_file(out, option=option) as file:
        writer = csv.writer(file)
        writer.writerow(("line", "reason", "image"))
        for problem in problems:
            writer.writerow(("" if problem.line is None else problem.line, problem.reason, escape_cell(problem.image)))


def print_summary(console: Console, engine: Engine, batch_id: int, *, ranked: int = 10) -> None:
    """Print counts, reasons and the most suspicious images.

    Args:
        console: Where to.
        engine: The ledger.
        batch_id: The batch.
        ranked: Rows of the ranking.
    """
    batch, counts = get_batch(engine, batch_id), count_items(engine, batch_id)
    status = make_status(batch, counts)
    console.print(status_table(status, batch.state.value, printable(batch.name)))
    for reason, count in sorted(counts.reasons.items()):
        console.print(f"  {count:>7,}  {printable(reason)}", highlight=False)
    rows = rank_malignant(engine, batch_id, ranked)
    if rows:
        table = Table(title="Most suspicious first", title_justify="left")
        for name, side in (("image", "left"), ("malignant score", "right"), ("diagnosis", "left"), ("", "left")):
            table.add_column(name, justify="right" if side == "right" else "left")
        for row in rows:
            referred = "refer to a person" if row.referred else ""
            score = f"{row.malignant_score or 0:.3f}"
            table.add_row(printable(row.image_id or row.path), score, printable(row.diagnosis), referred)
        console.print(table)
    warning, _ = read_drift(engine, batch_id)
    if warning:
        console.print(warning, highlight=False)
    console.print(NOTICE, style="dim")


def status_table(status: Status, state: str, name: str) -> Table:
    """Lay a status out.

    Args:
        status: The numbers.
        state: The batch's state.
        name: What the batch is called, printable.

    Returns:
        A table for the console.
    """
    table = Table(
        title=f"Batch {status.batch} ({name}), {_progress(state, finished=status.finished)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in (*_COUNTED, "seconds", "images/s"):
        table.add_column(column, justify="right")
    counts = (f"{getattr(status, name):,}" for name in _COUNTED)
    table.add_row(*counts, f"{status.seconds:,.1f}", f"{status.images_per_second:,.1f}")
    return table


def summaries_table(summaries: Iterable[BatchSummary]) -> Table:
    """Lay batches out, a line each.

    Args:
        summaries: The batches.

    Returns:
        A table for the console.
    """
    # Narrow, so that 80 columns have room for a name.
    table = Table(title="Batches, the newest last", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("batch", "name", "state", *_COUNTED):
        table.add_column(
            column, justify="right" if column in _COUNTED else "left", no_wrap=column != "name", overflow="fold"
        )
    for row in summaries:
        counts = (f"{getattr(row, name):,}" for name in _COUNTED)
        state = _progress(row.state.value, finished=row.open == 0)
        table.add_row(str(row.id), printable(row.name), state, *counts)
    return table


def _progress(state: str, *, finished: bool) -> str:
    return "finished" if finished and state == "open" else state


def write_results(engine: Engine, batch_id: int, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write results.csv and summary.json.

    Args:
        engine: The ledger.
        batch_id: The batch.
        folder: Where; made if it is not there.
        extra: More for the summary.

    Raises:
        UsageProblem: If nothing can be written there.
    """
    export_csv(engine, batch_id, folder / "results.csv")
    write_summary(engine, batch_id, folder / "summary.json", extra)


def write_summary(engine: Engine, batch_id: int, out: Path, extra: Mapping[str, Any]) -> None:
    """Write counts, reasons, model, prior and notice as JSON.

    Args:
        engine: The ledger.
        batch_id: The batch.
        out: The file.
        extra: More for the summary.

    Raises:
        UsageProblem: If nothing can be written there.
    """
    batch, counts = get_batch(engine, batch_id), count_items(engine, batch_id)
    model = get_model(engine, batch.model_digest)
    summary = {
        **make_status(batch, counts).as_json(),
        "state": batch.state.value,
        "reasons": dict(sorted(counts.reasons.items())),
        "model_name": model.name,
        "drift": read_drift(engine, batch_id)[1],
        "prior": model_prior(engine, batch.model_digest),
        "audit_head": chain_head(engine),
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        **extra,
    }
    with replace_file(out) as file:
        json.dump(summary, file, indent=2)
        file.write("\n")
