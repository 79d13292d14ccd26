"""Figures of an evaluation as tables and charts; whatever a model's evaluation does not state is said to be missing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from db.tables import CLASSES
from producer.charts import Line, chart
from producer.pages import Markup, element, join, table
from producer.stored import (
    ClassFigures,
    Curves,
    Figure,
    JudgedPoint,
    Referral,
    ReliabilityBin,
    StatedPoint,
    StoredEvaluation,
    Subgroup,
)
from producer.worklist import CLASS_NAMES, MALIGNANT, REFER_REASONS

#: What stands in the place of figures that a model's evaluation does not hold.
MISSING: Final = "Not stored for this model."

#: Figures over all classes, in words.
HEADLINES: Final[Mapping[str, str]] = {
    "balanced_accuracy": "Balanced accuracy (mean recall)",
    "balanced_accuracy_without_metadata": "The same with all metadata removed",
    "metadata_gain": "What metadata add to it",
    "paper_balanced_accuracy": "Balanced accuracy (mean of (sensitivity + specificity) / 2)",
    "accuracy": "Accuracy of the diagnosis",
    "accuracy_of_posterior": "Accuracy of the most probable class",
    "precision": "Macro precision",
    "f1": "Macro F1",
    "specificity": "Macro specificity",
    "macro_auc": "Macro ROC AUC",
    "malignant_auc": "Malignant ROC AUC",
}

#: What is calibrated, in words.
_CALIBRATED: Final = {
    "top_class": "Most probable class",
    "diagnosis": "Confidence of the diagnosis",
    "all_classes": "Every class against the rest, averaged",
    "malignant": "Malignant score",
}

#: Shares of false alarms at which a ROC curve is told in words.
_ALARMS: Final = (0.05, 0.1, 0.2, 0.5)

#: Steps of the confusion matrix's shades.
_SHADES: Final = 10

#: Images under which a bin is left out of the reliability diagram: its interval would span the figure.
_LEAST_IN_BIN: Final = 5

_INTERVAL_NOTE: Final = "In brackets: 95 % intervals of a bootstrap of whole lesions."


def missing() -> Markup:
    """Say that a model's evaluation does not hold what belongs here."""
    return element("p", MISSING, class_="note")


def name_class(code: str) -> str:
    """Name a class in words and by its code, with a mark where it adds to the malignant score."""
    return ("▲ " if code in MALIGNANT else "") + f"{CLASS_NAMES.get(code, code)} ({code})"


def headline_rows(found: StoredEvaluation, names: Iterable[str] = HEADLINES) -> list[tuple[str, str]]:
    """List the figures over all classes that are stored.

    Args:
        found: The evaluation.
        names: Which of `HEADLINES`.

    Returns:
        Words and figure.
    """
    figures = ((HEADLINES[name], getattr(found, name)) for name in names)
    return [(words, figure.tell()) for words, figure in figures if isinstance(figure, Figure)]


def show_headlines(found: StoredEvaluation) -> Markup:
    """Show the figures over all classes."""
    rows = headline_rows(found)
    if not rows:
        return missing()
    return join([table("Over all classes", ("Figure", "Value (95 % interval)"), rows), _drawn_note(found)])


def _drawn_note(found: StoredEvaluation) -> Markup:
    draws = "" if found.draws is None else f" {found.draws:,} draws."
    return element("p", f"The diagnosis favours no class for being common. {_INTERVAL_NOTE}{draws}", class_="note")


def show_classes(classes: Mapping[str, ClassFigures] | None) -> Markup:
    """Show each class against the rest."""
    if not classes:
        return missing()
    head = ("Class", "Images", "Sensitivity", "Specificity", "Precision", "F1", "ROC AUC")
    rows = [
        (
            name_class(code),
            one.true_positives + one.false_negatives,
            *(figure.tell() for figure in (one.sensitivity, one.specificity, one.precision, one.f1, one.auc)),
        )
        for code, one in classes.items()
    ]
    note = element("p", "▲ adds to the malignant score.", class_="note")
    return join([table("Each class against the rest (95 % intervals)", head, rows), note])


def show_confusion(matrix: Sequence[Sequence[int]] | None) -> Markup:
    """Show the confusion matrix as a table whose cells are shaded by their share of the true class."""
    if matrix is None:
        return missing()
    rows = [_confusion_row(code, counts) for code, counts in zip(CLASSES, matrix, strict=True)]
    head = ("Truth", "Images", *(f"said: {code}" for code in CLASSES))
    note = "A row is a true class, a column what was diagnosed; the darker, the larger the share of the true class. "
    made = table("Images by truth and diagnosis", head, rows)
    return join([element("div", made, class_="matrix"), element("p", note + "Framed: right.", class_="note")])


def _confusion_row(true: str, counts: Sequence[int]) -> tuple[object, ...]:
    whole = sum(counts)
    cells = (_shaded(count, whole, hit=said == true) for said, count in zip(CLASSES, counts, strict=True))
    return name_class(true), whole, *cells


def _shaded(count: int, whole: int, *, hit: bool) -> Markup:
    share = count / whole if whole else 0.0
    # What there is of is never without a shade.
    step = max(round(share * _SHADES), 1) if count else 0
    content = [f"{count:,}", element("small", _percent(share))] if count else ["0"]
    return element("span", *content, class_=f"shade s{step}" + (" hit" if hit else ""))


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "< 1%"  # noqa: PLR2004 - what would be rounded to nothing


def show_roc(found: StoredEvaluation) -> Markup:
    """Draw the ROC curves: of the malignant score with the operating point, and of each class against the rest."""
    curves = found.curves
    if curves is None or not curves.roc:
        return missing()
    titles = {"Malignant score": list(_malignant_lines(found, curves)), "Each class against the rest": []}
    for code in CLASSES:
        if points := curves.roc.get(code):
            area = found.classes[code].auc.tell() if found.classes and code in found.classes else "not stored"
            line = Line(name=f"{name_class(code)}: AUC {area}", points=points, look=f"k-{code}")
            titles["Each class against the rest"].append(line)
    axes = {"across": "share of false alarms (1 - specificity), by image", "up": "sensitivity, by image"}
    charts = [
        chart(f"ROC: {title.lower()}", lines, figures=_roc_table(lines), **axes) for title, lines in titles.items()
    ]
    return element("div", *charts, class_="pair")


def _malignant_lines(found: StoredEvaluation, curves: Curves) -> Iterator[Line]:
    if points := curves.roc.get("malignant"):
        area = "not stored" if found.malignant_auc is None else found.malignant_auc.tell()
        yield Line(name=f"Malignant score: AUC {area}", points=points, look="k-malignant")
    if curves.flagged:
        alarms, hits = curves.flagged
        said = f"Operating point: {hits:.1%} found at {alarms:.1%} false alarms"
        yield Line(name=said, points=(curves.flagged,), look="k-point", marked=True)


def _roc_table(lines: Sequence[Line]) -> Markup:
    head = ("Curve", *(f"at {share:.0%} false alarms" for share in _ALARMS))
    rows = [
        (line.name, *(f"{_sensitivity(line.points, share):.1%}" for share in _ALARMS))
        for line in lines
        if not line.marked
    ]
    return table("Sensitivity at a share of false alarms", head, rows)


def _sensitivity(points: Sequence[tuple[float, float]], alarms: float) -> float:
    # The last point that costs no more: nothing is promised between two thresholds.
    return max((hits for x, hits in points if x <= alarms), default=0.0)


def show_reliability(found: StoredEvaluation) -> Markup:
    """Draw how often the model is right at each confidence, before and after calibration, and the errors."""
    made = [_error_table(found)]
    curves = found.curves
    if curves is None:
        made.append(element("p", "Curves: " + MISSING[0].lower() + MISSING[1:], class_="note"))
        return join(made)
    charts = [
        _reliability_chart(words, curves.reliability_before.get(name, ()), curves.reliability.get(name, ()), up)
        for name, words, up in (
            ("malignant", "malignant score", "share that is malignant"),
            ("top_class", "probability of the most probable class", "share that is right"),
        )
    ]
    return join([element("div", *charts, class_="pair"), *made])


def _reliability_chart(
    words: str, before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin], up: str
) -> Markup:
    lines, rows = [], []
    for name, bins, look in (("Before calibration", before, "k-before"), ("Calibrated", after, "k-after")):
        shown = [one for one in bins if one.images >= _LEAST_IN_BIN]
        points, bars = [(one.confidence, one.share) for one in shown], [(one.low, one.high) for one in shown]
        lines.append(Line(name=name, points=points, bars=bars, look=look, marked=True))
        rows += [
            (name, one.images, f"{one.confidence:.3f}", f"{one.share:.3f} ({one.low:.3f} to {one.high:.3f})")
            for one in bins
        ]
    figures = table("Bins of confidence", ("Scores", "Images", "Mean", up.capitalize()), rows)
    note = f"Bins of {_LEAST_IN_BIN} images or more; bars: 95 % by Wilson, taking images for independent."
    return chart(f"Reliability: {words}", lines, across=words, up=up, figures=figures, note=note)


def _error_table(found: StoredEvaluation) -> Markup:
    before, after = found.calibration_before or {}, found.calibration or {}
    if not after:
        return missing()
    rows = [
        (words, before[name].tell() if name in before else "not stored", after[name].tell())
        for name, words in _CALIBRATED.items()
        if name in after
    ]
    caption = "Expected calibration error over 15 bins (95 % intervals)"
    return table(caption, ("What is calibrated", "Before", "After"), rows)


def show_operating_point(stated: StatedPoint | None, judged: JudgedPoint | None) -> Markup:
    """Show what the operating point does, with intervals where the artifact states them."""
    if judged is not None:
        return _judged_point(judged)
    if stated is None:
        return missing()
    found = Figure(value=stated.sensitivity)
    if stated.sensitivity_interval is not None:
        low, high = stated.sensitivity_interval
        found = Figure(value=stated.sensitivity, low=low, high=high)
    rows = [("Malignant lesions found by the score alone", found.tell(".1%"))]
    if stated.melanoma_sensitivity is not None:
        rows.append(("Melanomas found by the score alone", f"{stated.melanoma_sensitivity:.1%}"))
    rows.append(("Benign lesions not flagged by the score", f"{stated.specificity:.1%}"))
    made = [_point_text(stated.threshold, stated.lesions, stated.prevalence), _point_table(rows)]
    return join([*made, element("p", "This host has no artifact of the model that states more.", class_="note")])


def _judged_point(point: JudgedPoint) -> Markup:
    rows = [
        ("Malignant lesions flagged or referred", point.sensitivity),
        ("… by the score alone", point.sensitivity_by_score),
        ("Melanomas flagged or referred", point.melanoma_sensitivity),
        ("… by the score alone", point.melanoma_sensitivity_by_score),
        ("Benign lesions neither flagged nor referred", point.specificity),
        ("… not flagged by the score", point.specificity_by_score),
        ("Proven by histology: malignant lesions flagged or referred", point.histology_sensitivity),
        ("Proven by histology: benign lesions neither flagged nor referred", point.histology_specificity),
    ]
    told = _point_text(point.threshold.value or 0.0, point.lesions, point.prevalence)
    note = (
        f"Chosen anew on each draw, the threshold is {point.threshold.tell('.4f')}. "
        f"{point.histology_lesions:,} lesions were proven by histology; naevi known from follow-up alone are easier. "
        f"{_INTERVAL_NOTE}"
    )
    return join(
        [told, _point_table([(name, one.tell(".1%")) for name, one in rows]), element("p", note, class_="note")]
    )


def _point_text(threshold: float, lesions: int | None, prevalence: float | None) -> Markup:
    told = f"A lesion is flagged where the malignant score of any of its images reaches {threshold:.4f}."
    if lesions is not None and prevalence is not None:
        told += f" Judged on {lesions:,} held-out lesions, {prevalence:.1%} of them malignant or premalignant."
    return element("p", told)


def _point_table(rows: Sequence[tuple[str, str]]) -> Markup:
    return table("At the operating point", ("Share of lesions", "Value (95 % interval)"), rows)


def show_referral(found: Referral | None) -> Markup:
    """Show what goes to a person whatever its score."""
    if found is None:
        return missing()
    rows = [
        ("All", found.referred.tell(".1%")),
        (REFER_REASONS["unfamiliar_image"].capitalize(), f"{found.unfamiliar:.1%}"),
        (REFER_REASONS["low_confidence"].capitalize(), f"{found.low_confidence:.1%}"),
    ]
    rows += [
        (name_class(code), "no images" if share is None else f"{share:.1%}") for code, share in found.by_class.items()
    ]
    return table("Images that a person must look at whatever the score", ("Which", "Share of images"), rows)


def show_subgroups(groups: Sequence[Subgroup] | None) -> Markup:
    """Show the figures of each group of patients, with how many it has."""
    if not groups:
        return missing()
    head = (
        *("Group", "Images", "Lesions", "Malignant lesions", "Sensitivity", "Specificity"),
        *("Malignant ROC AUC", "Balanced accuracy", "Referred"),
    )
    rows = [
        (
            f"{one.field}: {one.group}",
            *(one.images, one.lesions, one.malignant_lesions),
            *(figure.tell() for figure in (one.sensitivity, one.specificity, one.malignant_auc)),
            *(one.balanced_accuracy.tell(), one.referred.tell(".1%")),
        )
        for one in groups
    ]
    note = "Where few lesions are malignant, the interval of a sensitivity says little."
    caption = "Subgroups of the held-out images at the same operating point (95 % intervals)"
    return join([table(caption, head, rows), element("p", note, class_="note")])
