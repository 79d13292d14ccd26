"""The worklist report: a folder of pages that works from a file share, without a network and without a server."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from db.batches import BatchRow, get_batch
from db.counts import count_items
from db.models import get_model
from db.tables import CLASSES
from db.worklist import count_lesions
from producer.budget import cover_days
from producer.errors import UsageProblem
from producer.export import model_prior, replace_file
from producer.overview import Reading, header, make_overview, read_budget, threshold_of
from producer.pages import Markup, element, join, page, table
from producer.status import Status, make_status
from producer.worklist import CLASS_NAMES, MALIGNANT, PART_LESIONS, UNREAD_ROWS, Ranking, WorklistWriter, write_call
from worker.shelf import Shelf

#: Files of ours that are copied beside the pages.
_ASSETS: Final = ("style.css", "worklist.js", "cards.js")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What a report is told."""

    #: Its folder.
    out: Path
    #: Lesions that are ranked at most.
    top: int
    #: Lesions that a person reads a day; None says nothing of a budget.
    budget: int | None = None
    #: Share of melanoma among the lesions screened; None gives relative ranks only.
    prevalence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a report holds."""

    lesions: int
    #: Lesions that rank below the last one in it.
    left_out: int
    unread: int
    open: int


def write_report(
    engine: Engine,
    batch_id: int,
    shelf: Shelf,
    options: ReportOptions,
    on_lesions: Callable[[int], object] = lambda _count: None,
) -> Written:
    """Write a batch's report; reads ledger and store only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        shelf: Of the artifact store, where the pictures are.
        options: Where to, and how much.
        on_lesions: Told how many lesions are written.

    Returns:
        What is in it.

    Raises:
        UnknownBatch: If the batch is not there.
        UsageProblem: If the folder cannot be written, or the model's prior is needed and not known.
    """
    batch, counts = get_batch(engine, batch_id), count_items(engine, batch_id)
    prior = model_prior(engine, batch.model_digest)
    if options.prevalence is not None and prior is None:
        raise UsageProblem("The batch's model has no prior on record, so --prevalence cannot be used; leave it out.")
    data = options.out / "data"
    _prepare(options.out, data)
    writer = WorklistWriter(
        engine=engine,
        batch_id=batch_id,
        shelf=shelf,
        folder=data,
        threshold=threshold_of(get_model(engine, batch.model_digest)),
        on_lesions=on_lesions,
    )
    ranking = writer.write_ranking(options.top, prior=prior["mel"] if prior else None, prevalence=options.prevalence)
    writer.write_unread()
    status, lesions = make_status(batch, counts), len(ranking.scores)
    written = Written(
        lesions=lesions,
        left_out=max(0, count_lesions(engine, batch_id) - lesions),
        unread=counts.rejected + counts.quarantined,
        open=counts.open,
    )
    reading = _read(ranking, options)
    write_call(data / "index.js", "start", ranking.as_json() | _constants(written))
    pages = {
        "overview.html": make_overview(engine, batch, status, counts.reasons, reading),
        "index.html": _worklist_page(batch, status, counts.reasons, reading, written),
    }
    for name in _ASSETS:
        _write(options.out / name, (resources.files("producer") / "assets" / name).read_text(encoding="utf-8"))
    # The pages last: where they are, everything they show is.
    for name, text in pages.items():
        _write(options.out / name, text)
    return written


def make_folder(folder: Path) -> None:
    """Make a folder of a report, its owner's alone, where it is not there.

    Args:
        folder: Where.

    Raises:
        UsageProblem: If it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error


def _prepare(out: Path, data: Path) -> None:
    make_folder(out)
    make_folder(data)
    try:
        # An older report's pages must not show a newer one's data, nor its erased patients live on in files that no
        # page shows any more.
        for page_name in ("index.html", "overview.html"):
            (out / page_name).unlink(missing_ok=True)
        for pattern in ("part-*.js", "unread-*.js"):
            for file in data.glob(pattern):
                file.unlink()
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> UsageProblem:
    return UsageProblem(f"The report cannot be written ({error.strerror}); give another place with --out.")


def _write(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text)


def _read(ranking: Ranking, options: ReportOptions) -> Reading | None:
    if options.budget is None:
        return None
    melanoma = ranking.melanoma if options.prevalence is not None else None
    return Reading(
        budget=options.budget,
        prevalence=options.prevalence,
        days=cover_days(ranking.scores, melanoma, options.budget),
        lesions=len(ranking.scores),
        expected=None if melanoma is None else sum(melanoma),
    )


def _constants(written: Written) -> dict[str, Any]:
    return {
        "classes": [{"code": name, "name": CLASS_NAMES[name], "malignant": name in MALIGNANT} for name in CLASSES],
        "partLesions": PART_LESIONS,
        "unreadRows": UNREAD_ROWS,
        "totals": asdict(written),
    }


def _worklist_page(
    batch: BatchRow, status: Status, reasons: Mapping[str, int], reading: Reading | None, written: Written
) -> str:
    body = [
        element("a", "Skip to the ranking", href="#ranking", class_="skip"),
        header(batch, "worklist"),
        element("main", join([_unread_section(status, reasons), *_budget_section(reading), _ranking_section(written)])),
        element("noscript", "The ranking needs JavaScript; results.csv of lesion-screen export has the same rows."),
    ]
    return page(f"Batch {batch.id}: worklist", join(body), scripts=("cards.js", "worklist.js", "data/index.js"))


def _unread_section(status: Status, reasons: Mapping[str, int]) -> Markup:
    unread = status.rejected + status.quarantined
    made = [element("h2", "Not assessed: must be read by hand", id="unread-title")]
    if unread:
        told = (
            (reason.replace("_", " "), count) for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])
        )
        made.append(element("p", f"{unread:,} of {status.found:,} images have no score, and no place in the ranking."))
        made.append(table("Reasons", ("Reason", "Images"), told))
        rows = element("div", id="unread-rows")
        made.append(element("details", element("summary", f"List all {unread:,}"), rows, id="unread"))
    else:
        made.append(element("p", "None: every image that was looked at has a score."))
    if status.open:
        warning = (
            f"{status.open:,} images are not screened yet and are not in this report. Make it again when they are."
        )
        made.append(element("p", warning, class_="warning"))
    return element("section", *made, class_="unread", aria_labelledby="unread-title")


def _budget_section(reading: Reading | None) -> list[Markup]:
    if reading is None:
        return []
    told = f"Reading budget: {reading.budget:,} lesions a day"
    if reading.days and reading.expected is not None:
        first = reading.days[0]
        told += f"; the first day is expected to cover {first.expected:.1f} melanomas ({first.low} to {first.high}) "
        told += f"of {reading.expected:.1f}"
    summary = element("summary", told)
    return [element("section", element("details", summary, read_budget(reading)), class_="budget")]


def _ranking_section(written: Written) -> Markup:
    made = [element("h2", "Ranking", id="ranking-title")]
    explained = (
        f"{written.lesions:,} lesions, the most suspicious first; a lesion ranks by its worst image. "
        "“Not prioritised” means a score below the operating point, and nothing more. Evidence shows which places "
        "of an image spoke for its diagnosis, as the network added them up; that need not be the lesion, and "
        "proves nothing."
    )
    made.append(element("p", explained))
    if written.left_out:
        made.append(
            element("p", f"{written.left_out:,} more lesions rank lower and are in exports only.", class_="warning")
        )
    made.append(element("form", id="filters", aria_label="Filters"))
    made.append(element("div", id="pager", class_="pager"))
    made.append(element("p", "Loading …", id="said", role="status"))
    made.append(element("ol", id="cards", class_="cards"))
    return element("section", *made, id="ranking", aria_labelledby="ranking-title")
