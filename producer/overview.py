"""The overview page: outcomes, histograms, class mix, reading budget, drift and the model's card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine

from db.batches import BatchRow
from db.drift import LEAST_IMAGES, DriftRow, get_drift
from db.models import ModelRow, get_model
from db.tables import CLASSES
from db.worklist import count_diagnoses, count_in_bins, sum_probabilities
from producer.budget import Covered
from producer.drift import FEATURE_WORDS, describe_reference, judge_index
from producer.export import NOTICE, model_prior
from producer.figures import headline_rows, name_class, show_subgroups
from producer.pages import Markup, element, histogram, join, page, table
from producer.status import Status
from producer.stored import StoredEvaluation
from producer.worklist import REFER_REASONS

#: Bins of the histograms.
_BINS: Final = 20

#: The melanomas that a prevalence and the probabilities lead one to expect may differ by such a factor.
_FAR_APART: Final = 2

#: Figures over all classes that the card has; the evaluation report has all.
_FIGURES: Final = ("balanced_accuracy", "accuracy", "macro_auc", "malignant_auc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The reading budget as the user stated it, and what it covers."""

    #: Lesions a day.
    budget: int
    prevalence: float | None
    days: Sequence[Covered]
    #: All ranked lesions, and the melanomas expected among them.
    lesions: int
    expected: float | None


def make_overview(
    engine: Engine, batch: BatchRow, status: Status, reasons: Mapping[str, int], reading: Reading | None
) -> str:
    """Make the overview page; reads only.

    Args:
        engine: The ledger.
        batch: The batch.
        status: Its counts.
        reasons: Reason codes of what failed to how many.
        reading: The reading budget; None where none was stated.

    Returns:
        HTML.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    model = get_model(engine, batch.model_digest)
    sections = [
        _section("Outcomes", _outcomes(status, reasons)),
        _section("Reading budget", read_budget(reading)) if reading else Markup(""),
        _section("Scores", _histograms(engine, batch, model)),
        _section("Class mix", _class_mix(engine, batch, status)),
        _section("Drift", _drift(get_drift(engine, batch.id))),
        _section("Model", _card(model)),
    ]
    body = join(
        [header(batch, "overview"), element("main", *(section for section in sections if section), class_="overview")]
    )
    return page(f"Batch {batch.id}: overview", body)


def header(batch: BatchRow, here: str) -> Markup:
    """Make the head of a page, with the links between both.

    Args:
        batch: The batch.
        here: "worklist" or "overview".

    Returns:
        HTML.
    """
    places = {"worklist": "index.html", "overview": "overview.html"}
    links = [
        element("a", name.capitalize(), href=target, aria_current="page" if name == here else None)
        for name, target in places.items()
    ]
    title = element("h1", f"Batch {batch.id}: ", batch.name)
    return element("header", element("div", title, element("nav", *links, aria_label="Pages")), element("p", NOTICE))


def _section(title: str, content: Markup) -> Markup:
    return element("section", element("h2", title), content)


def _outcomes(status: Status, reasons: Mapping[str, int]) -> Markup:
    rows = [
        ("Scored", status.done, "ranked"),
        ("Referred", status.referred, "ranked, and for a person to read whatever the score"),
        ("Rejected", status.rejected, "not assessed: must be read by hand"),
        ("Quarantined", status.quarantined, "not assessed: must be read by hand"),
        ("Open", status.open, "not screened yet"),
        ("Found", status.found, "the sum"),
    ]
    made = [table("Images by outcome", ("Outcome", "Images", "What it means"), rows)]
    if reasons:
        failed = sorted(reasons.items(), key=lambda pair: -pair[1])
        told = ((name.replace("_", " "), count) for name, count in failed)
        made.append(table("Images that were not assessed, by reason", ("Reason", "Images"), told))
    return join(made)


def read_budget(reading: Reading) -> Markup:
    """Say what a reading budget covers.

    Args:
        reading: The budget and its days.

    Returns:
        HTML.
    """
    days = -(-reading.lesions // reading.budget)
    said = f"At {reading.budget:,} lesions a day the list of {reading.lesions:,} takes {days:,} days."
    if reading.prevalence is None or reading.expected is None:
        return join([element("p", said), *_ranks_only(reading)])
    rows = [
        (
            f"Day {one.day}",
            one.lesions,
            f"{one.score:.3f}",
            f"{one.expected:.1f} ({one.low} to {one.high})",
            _share(one.expected or 0, reading.expected),
        )
        for one in reading.days
    ]
    head = (
        *("Read by the end of", "Lesions", "Lowest score read"),
        *("Expected melanomas (95 % interval)", "Of all expected"),
    )
    stated = reading.prevalence * reading.lesions
    sums = (
        f"At the stated prevalence of {reading.prevalence:.2%} one would expect {stated:.1f} melanomas in the list; "
        f"the re-weighted probabilities add up to {reading.expected:.1f}."
    )
    apart = not stated / _FAR_APART <= reading.expected <= stated * _FAR_APART
    warning = (
        "They disagree by more than a factor of two: the prevalence or the model does not fit this archive, and these "
        "figures should not be relied on."
    )
    note = (
        "Each probability of melanoma is re-weighted from the model's prior to that prevalence (Saerens et al. 2002, "
        "eq. 2.4); a lesion counts with the mean of its images. The interval is that of chance alone (Poisson "
        "binomial): it does not know of errors of the probabilities, of drift, or of a prevalence that is wrong."
    )
    told = [element("p", said), table("What reading is expected to cover", head, rows), element("p", sums)]
    return join(
        [*told, *([element("p", warning, class_="warning")] if apart else []), element("p", note, class_="note")]
    )


def _ranks_only(reading: Reading) -> list[Markup]:
    rows = [
        (f"Day {one.day}", one.lesions, _share(one.lesions, reading.lesions), f"{one.score:.3f}")
        for one in reading.days
    ]
    note = "Ranks only: how many melanomas that covers depends on how common they are here; see --prevalence."
    head = ("Read by the end of", "Lesions", "Of the list", "Lowest score read")
    return [table("What reading covers", head, rows), element("p", note, class_="note")]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def threshold_of(model: ModelRow) -> float | None:
    """Look up a model's operating point.

    Args:
        model: From the ledger.

    Returns:
        The malignant score from which on a lesion is prioritised, or None where it is not on record.
    """
    point = model.metrics.get("operating_point")
    found = point.get("threshold") if isinstance(point, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None


def _histograms(engine: Engine, batch: BatchRow, model: ModelRow) -> Markup:
    scores, confidences = count_in_bins(engine, batch.id, _BINS)
    threshold = threshold_of(model)
    said = "" if threshold is None else f"from {threshold:.4f} on an image is prioritised"
    drawn = [
        histogram("Malignant score", scores, mark=threshold, said=said),
        histogram("Confidence of the diagnosis", confidences),
    ]
    return element("div", *drawn, class_="pair")


def _class_mix(engine: Engine, batch: BatchRow, status: Status) -> Markup:
    diagnoses, expected = count_diagnoses(engine, batch.id), sum_probabilities(engine, batch.id)
    prior, scored = model_prior(engine, batch.model_digest) or {}, max(status.done + status.referred, 1)
    rows = [
        (
            name_class(name),
            diagnoses[name],
            f"{diagnoses[name] / scored:.1%}",
            f"{expected[place] / scored:.1%}",
            f"{prior[name]:.1%}" if name in prior else "unknown",
        )
        for place, name in enumerate(CLASSES)
    ]
    head = ("Class", "Images diagnosed", "Share", "Mean probability", "Share in training")
    note = (
        "▲ adds to the malignant score. The diagnosis favours no class for being common, so its shares differ from the "
        "mean probabilities by design."
    )
    return join([table("Classes in this batch and in training", head, rows), element("p", note, class_="note")])


def _drift(row: DriftRow | None) -> Markup:
    if row is None:
        return element(
            "p", "Not measured: the batch is not finished, or its model does not state what it was judged on."
        )
    rows = [
        (FEATURE_WORDS.get(name, name).capitalize(), f"{index:.3f}", judge_index(row, index))
        for name, index in row.indices.items()
    ]
    made = [table(f"Against {describe_reference(row)}", ("Feature", "Population stability index", "Shift"), rows)]
    if row.images < LEAST_IMAGES:
        made.append(element("p", f"{row.images:,} images are too few to tell: it takes {LEAST_IMAGES}.", class_="note"))
    return join(made)


def _card(model: ModelRow) -> Markup:
    found = StoredEvaluation.of(model.metrics)
    facts: list[tuple[str, object]] = [
        ("Name", model.name),
        ("Backbone", model.backbone),
        ("Digest", element("code", model.digest)),
        ("Training data", element("code", model.data_digest)),
        ("Judged on", "unknown" if found.images is None else f"{found.images:,} held-out images"),
        *headline_rows(found, _FIGURES),
    ]
    if point := found.operating_point:
        facts.append(("Operating point", f"{point.threshold:.4f}"))
        facts.append(("Sensitivity for malignant lesions", f"{point.sensitivity:.1%}"))
        facts.append(("Specificity", f"{point.specificity:.1%}"))
    made = [table("The model that the batch is pinned to", ("Fact", "Value"), facts, facts=True)]
    if found.subgroups:
        made.append(show_subgroups(found.subgroups))
    reasons = ", ".join(f"“{words}” ({code})" for code, words in REFER_REASONS.items())
    made.append(element("p", f"Images are referred because they are {reasons}.", class_="note"))
    return join(made)
