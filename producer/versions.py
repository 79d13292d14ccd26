"""The commands about model versions: which there are, which is active, and what another one changes."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from db.audit import record_action
from db.batches import get_batch
from db.models import ModelRow, activate_model, active_model, find_gate, find_model, list_models, roll_back_model
from db.rescreen import Change, ChangeKind, Comparison, ModelSide, copy_batch
from producer.errors import EXIT_DONE, UsageProblem
from producer.export import NOTICE, escape_cell, replace_file
from producer.ledger import open_existing, read_place
from producer.report import printable
from producer.terminal import name_actor, open_console, print_json

#: Digits of a digest that people are shown.
_SHORT: Final = 12
#: Changed verdicts named on the terminal.
_SHOWN: Final = 20

_WORDS: Final = {
    ChangeKind.NEWLY_PRIORITISED: "went from not prioritised to prioritised",
    ChangeKind.NEWLY_REFERRED: "are referred to a person now",
    ChangeKind.NO_LONGER_PRIORITISED: "went from prioritised to not prioritised",
    ChangeKind.OTHER_DIAGNOSIS: "got another diagnosis",
    ChangeKind.NO_LONGER_REFERRED: "are no longer referred to a person",
}

_FIGURES: Final = ("diagnosis", "malignant_score", "prioritised", "referred")

#: Columns of the file of changed verdicts.
COLUMNS: Final = (
    *("image_id", "path", "change"),
    *(f"before_{name}" for name in _FIGURES),
    *(f"after_{name}" for name in _FIGURES),
)


def show_models(*, as_json: bool) -> int:
    """Do `lesion-screen models list`.

    Args:
        as_json: Print JSON alone.

    Returns:
        The exit code.
    """
    models = list_models(open_existing(read_place()))
    if as_json:
        print_json({"models": [_as_json(model) for model in models]})
        return EXIT_DONE
    table = Table(title="Models, newest first", title_justify="left")
    for name in ("digest", "state", "registered", "balanced accuracy"):
        table.add_column(name, no_wrap=True)
    table.add_column("name")
    for model in models:
        registered = datetime.fromtimestamp(model.created_at, UTC).date().isoformat()
        accuracy = _interval(model, "balanced_accuracy")
        table.add_row(model.digest[:_SHORT], model.state.value, registered, accuracy, printable(model.name))
    Console().print(table)
    return EXIT_DONE


def show_model(wanted: str) -> int:
    """Do `lesion-screen models show`: everything that is known of a model, as JSON.

    Args:
        wanted: Its digest or the beginning of it.

    Returns:
        The exit code.
    """
    engine = open_existing(read_place())
    model = find_model(engine, wanted)
    print_json(_as_json(model) | {"gate": find_gate(engine, model.digest), "metrics": dict(model.metrics)})
    return EXIT_DONE


def promote(wanted: str, why: str) -> int:
    """Do `lesion-screen models promote`.

    Args:
        wanted: Its digest or the beginning of it.
        why: The reason, for the audit trail.

    Returns:
        The exit code.
    """
    engine, console = open_existing(read_place()), open_console()
    model = find_model(engine, wanted)
    _insist_on_reason(why)
    changed = activate_model(engine, model.digest, actor=name_actor(), why=why)
    console.print(f"Model {model.digest[:_SHORT]} {'is' if changed else 'was already'} active.", highlight=False)
    _say_who_is_concerned(console)
    return EXIT_DONE


def roll_back(why: str) -> int:
    """Do `lesion-screen models rollback`.

    Args:
        why: The reason, for the audit trail.

    Returns:
        The exit code.
    """
    engine, console = open_existing(read_place()), open_console()
    _insist_on_reason(why)
    model = roll_back_model(engine, actor=name_actor(), why=why)
    console.print(f"Model {model.digest[:_SHORT]} ({printable(model.name)}) is active again.", highlight=False)
    _say_who_is_concerned(console)
    return EXIT_DONE


def rescreen(batch_id: int, wanted: str | None) -> int:
    """Do `lesion-screen rescreen`.

    Args:
        batch_id: A batch of the archive.
        wanted: The model's digest or the beginning of it; None takes the active one.

    Returns:
        The exit code.
    """
    engine, console = open_existing(read_place()), open_console()
    model = active_model(engine) if wanted is None else find_model(engine, wanted)
    if model is None:
        raise UsageProblem("No model is active; name one with --model.")
    before = get_batch(engine, batch_id)
    copied = copy_batch(engine, batch_id, model.digest, name_actor())
    print_json({"batch": copied.batch_id, "model": model.digest})
    verb = "is that of" if copied.existed else "screens the archive again with"
    console.print(f"Batch {copied.batch_id} {verb} model {model.digest[:_SHORT]}, after all others.", highlight=False)
    console.print(f"`lesion-screen resume {copied.batch_id}` rings for it.", highlight=False)
    console.print(
        f"Then: `lesion-screen changes {batch_id} --from {before.model_digest[:_SHORT]} --to {model.digest[:_SHORT]}`",
        highlight=False,
    )
    return EXIT_DONE


def show_changes(batch_id: int, before: str, after: str, *, out: Path | None, as_json: bool) -> int:
    """Do `lesion-screen changes`.

    Args:
        batch_id: A batch of the archive, of either model.
        before: The one model's digest or the beginning of it.
        after: The other model's.
        out: A CSV file for all changed verdicts.
        as_json: Print JSON alone.

    Returns:
        The exit code.
    """
    engine, console = open_existing(read_place()), open_console(quiet=as_json)
    comparison = Comparison(engine, batch_id, _side(engine, before), _side(engine, after))
    counts = comparison.count()
    if out is not None:
        record_action(engine, name_actor(), "export_changes", f"batch {batch_id}")
        _write_changes(comparison, out)
    if as_json:
        kinds = {kind.name.lower(): counts.kinds.get(kind, 0) for kind in ChangeKind}
        print_json({"batch": batch_id, "compared": counts.compared, "incomparable": counts.incomparable, **kinds})
        return EXIT_DONE
    for kind in ChangeKind:
        console.print(
            f"{counts.kinds.get(kind, 0):>9,} of {counts.compared:,} {_WORDS[kind]}.", highlight=False, soft_wrap=True
        )
    if counts.incomparable:
        console.print(f"{counts.incomparable:,} have no verdict of both models.", highlight=False)
    if counts.kinds:
        Console().print(_changes_table(comparison))
    console.print(NOTICE, style="dim")
    return EXIT_DONE


def _side(engine: Engine, wanted: str) -> ModelSide:
    model = find_model(engine, wanted)
    threshold = (model.metrics.get("operating_point") or {}).get("threshold")
    if threshold is None:
        raise UsageProblem(
            f"Model {model.digest[:_SHORT]} was registered without an operating point; compare with another one."
        )
    return ModelSide(digest=model.digest, threshold=threshold)


def _changes_table(comparison: Comparison) -> Table:
    table = Table(title="Changed verdicts, the worst first", title_justify="left")
    for name in ("image", "change", "before", "after"):
        table.add_column(name)
    for number, change in enumerate(comparison.list()):
        if number == _SHOWN:
            table.caption = f"The first {_SHOWN}; --out FILE writes all."
            break
        sides = (f"{side.diagnosis} {side.malignant_score:.3f}" for side in (change.before, change.after))
        table.add_row(printable(change.image_id or change.path), _WORDS[change.kind], *sides)
    return table


def _write_changes(comparison: Comparison, out: Path) -> None:
    with replace_file(out) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for change in comparison.list():
            writer.writerow(_cells(change))


def _cells(change: Change) -> list[str]:
    cells = [escape_cell(change.image_id), escape_cell(change.path), change.kind.name.lower()]
    for side in (change.before, change.after):
        flags = (str(flag).lower() for flag in (side.prioritised, side.referred))
        cells += [side.diagnosis, f"{side.malignant_score:.9g}", *flags]
    return cells


def _as_json(model: ModelRow) -> dict[str, object]:
    return {
        "digest": model.digest,
        "name": model.name,
        "backbone": model.backbone,
        "state": model.state.value,
        "parent": model.parent,
        "data_digest": model.data_digest,
        "registered": datetime.fromtimestamp(model.created_at, UTC).isoformat(timespec="seconds"),
    }


def _interval(model: ModelRow, figure: str) -> str:
    found = model.metrics.get(figure)
    if not isinstance(found, dict) or found.get("value") is None:
        return "not stated"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _insist_on_reason(why: str) -> None:
    if not why.strip():
        raise UsageProblem("Give the reason with --why; the audit trail keeps it.")


def _say_who_is_concerned(console: Console) -> None:
    console.print(
        "New batches take it; one that was submitted keeps its model, and `lesion-screen rescreen` does it again."
    )
