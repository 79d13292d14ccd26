"""The evaluation report: a page about a model, from what ledger and artifact store know of it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from db.contradictions import Contradiction, Judged, judge_by_labels
from db.models import ModelRow, find_gate
from db.pictures import thumb_path
from producer.export import NOTICE, replace_file
from producer.figures import (
    missing,
    name_class,
    show_classes,
    show_confusion,
    show_headlines,
    show_operating_point,
    show_referral,
    show_reliability,
    show_roc,
    show_subgroups,
)
from producer.markdown import render
from producer.pages import Markup, element, join, page, table
from producer.site import make_folder
from producer.stored import Gate, StoredEvaluation, gate_verdict, read_card, read_judged_point
from producer.worklist import embed_picture
from worker.shelf import Shelf

#: The page's file; another name than the worklist's, so that both may lie in one folder.
PAGE: Final = "evaluation.html"

#: Mistakes that are shown.
_SHOWN: Final = 10

#: What the gate's words mean.
_VERDICTS: Final = {
    "promote": "not worse than the active model, beyond every margin",
    "refuse": "worse than the active model by more than a margin",
    "undecided": "a person decides",
}

_DX_TYPES: Final = {
    "histo": "histology",
    "confocal": "confocal microscopy",
    "consensus": "consensus",
    "follow_up": "follow-up",
}


def write_evaluation(engine: Engine, model: ModelRow, shelf: Shelf, out: Path) -> int:
    """Write a model's evaluation report; reads ledger and store only.

    Args:
        engine: The ledger.
        model: The model.
        shelf: Of the artifact store.
        out: The folder.

    Returns:
        How many mistakes it shows: with any, it names images of patients.

    Raises:
        UsageProblem: If the folder cannot be written.
    """
    make_folder(out)
    judged = judge_by_labels(engine, model.digest, _SHOWN)
    text = make_evaluation(model, find_gate(engine, model.digest), judged, shelf)
    style = (resources.files("producer") / "assets" / "style.css").read_text(encoding="utf-8")
    # The page last: where it is, everything it shows is.
    for name, content in (("style.css", style), (PAGE, text)):
        with replace_file(out / name) as file:
            file.write(content)
    return len(judged.worst)


def make_evaluation(model: ModelRow, gate: Mapping[str, Any] | None, judged: Judged, shelf: Shelf) -> str:
    """Make the page.

    Args:
        model: The model.
        gate: What the gate said of it, as the ledger keeps it; None where it was never asked.
        judged: Its verdicts against confirmed diagnoses.
        shelf: Of the artifact store.

    Returns:
        HTML.
    """
    found = StoredEvaluation.of(model.metrics)
    point = read_judged_point(shelf, model.digest)
    sections = [
        ("Model", _identity(model, found)),
        ("Headline figures", show_headlines(found)),
        ("Operating point", show_operating_point(found.operating_point, point)),
        ("Referral", show_referral(found.referral)),
        ("Confusion matrix", show_confusion(found.confusion)),
        ("By diagnosis", show_classes(found.classes)),
        ("ROC curves", show_roc(found)),
        ("Calibration", show_reliability(found)),
        ("Subgroups", show_subgroups(found.subgroups)),
        ("Gate", _gate(gate)),
        ("Worst mistakes", _mistakes(judged, shelf)),
        ("Model card", _card(read_card(shelf, model.digest))),
    ]
    anchors = [(title, title.lower().replace(" ", "-")) for title, _ in sections]
    links = (element("a", title, href=f"#{anchor}") for title, anchor in anchors)
    nav = element("nav", *links, aria_label="Sections", class_="sections")
    head = element("header", element("div", element("h1", "Evaluation: ", model.name)), element("p", NOTICE), nav)
    shown = (
        element("section", element("h2", title, id=anchor), content, aria_labelledby=anchor)
        for (title, anchor), (_, content) in zip(anchors, sections, strict=True)
    )
    body = [element("a", "Skip to the figures", href="#model", class_="skip"), head]
    return page(f"Evaluation: {model.name}", join([*body, element("main", *shown, class_="evaluation")]))


def _identity(model: ModelRow, found: StoredEvaluation) -> Markup:
    held_out = "unknown"
    if found.images is not None:
        lesions = "" if found.lesions is None else f" of {found.lesions:,} lesions"
        held_out = f"{found.images:,} held-out images{lesions}"
    registered = datetime.fromtimestamp(model.created_at, UTC).date().isoformat()
    facts: list[tuple[str, object]] = [
        ("Name", model.name),
        ("Backbone", model.backbone),
        ("Digest", element("code", model.digest)),
        ("State", model.state.value),
        ("Registered", registered),
        ("Trained from", element("code", model.parent) if model.parent else "no other model"),
        ("Training data", element("code", model.data_digest)),
        ("Judged on", held_out),
    ]
    return table("Which model this is", ("Fact", "Value"), facts, facts=True)


def _gate(gate: Mapping[str, Any] | None) -> Markup:
    if gate is None:
        return element("p", "The gate was not asked about this model: no training run of this ledger ended with it.")
    found = Gate.of(gate)
    if found is None:
        return missing()
    verdict = gate_verdict(gate)
    compared = element("code", found.active[:12])
    head = element("p", "Verdict: ", element("strong", verdict), f": {_VERDICTS.get(verdict, 'a person decides')}.")
    made = [head, element("p", "Compared with the model ", compared, f", in use {found.uses:,} of this gate set.")]
    if found.decision is None:
        return join([*made, element("p", found.problem or "The two could not be compared.")])
    if not found.independent:
        told = "The gate set is part of the candidate's own data, so that the gate promotes nothing by itself."
        made.append(element("p", told, class_="note"))
    rows = [
        (
            one.name.replace("_", " "),
            f"{one.candidate:.3f}",
            f"{one.active:.3f}",
            f"{one.difference:+.3f} ({one.low:+.3f} to {one.high:+.3f})",
            f"{one.margin:g}",
        )
        for one in found.decision.figures
    ]
    caption = (
        f"On {found.decision.images:,} images of {found.decision.lesions:,} lesions, "
        f"{found.decision.malignant_lesions:,} of them malignant; a difference below 0 is worse"
    )
    made.append(table(caption, ("Figure", "This model", "Active then", "Difference (90 %)", "Margin"), rows))
    made.append(element("ul", *(element("li", reason) for reason in found.decision.reasons)))
    return join(made)


def _mistakes(judged: Judged, shelf: Shelf) -> Markup:
    if not judged.images:
        told = (
            "None can be named: the ledger holds no image with both a confirmed diagnosis and a verdict of this model. "
            "`lesion-screen label` feeds diagnoses back."
        )
        return element("p", told)
    share = judged.contradicted / judged.images
    told = (
        f"Of {judged.images:,} images with a confirmed diagnosis that this model has screened, "
        f"{judged.contradicted:,} ({share:.1%}) were diagnosed otherwise."
    )
    if not judged.worst:
        return element("p", told)
    note = (
        "The most confident of these, not a fair sample: who is confirmed is not chosen at random, and this model may "
        "have learned from some of them."
    )
    cards = element("ol", *(_mistake(one, shelf) for one in judged.worst), class_="mistakes")
    return join([element("p", told), element("p", note, class_="note"), cards])


def _mistake(one: Contradiction, shelf: Shelf) -> Markup:
    picture = embed_picture(shelf, thumb_path(one.input_digest), "image/jpeg")
    text = f"Image {one.image_id or one.path}, confirmed as {one.dx}, diagnosed as {one.diagnosis}"
    none = element("div", "No picture was drawn", class_="none")
    shown = none if picture is None else element("img", src=picture, alt=text)
    facts = {
        "Image": one.image_id or one.path,
        "Confirmed": f"{name_class(one.dx)}, by {_DX_TYPES.get(one.dx_type, one.dx_type)}",
        "Diagnosed": name_class(one.diagnosis),
        "Confidence": f"{one.confidence:.3f}",
        "Malignant score": f"{one.malignant_score:.3f}",
        "Referred": "yes" if one.referred else "no",
    }
    told = (piece for name, value in facts.items() for piece in (element("dt", name), element("dd", value)))
    return element("li", shown, element("dl", *told))


def _card(text: str | None) -> Markup:
    if text is None:
        return element("p", "This host has no artifact of the model, so its card is not shown.")
    return element(
        "details", element("summary", "The card, as it lies beside the model"), render(text), class_="card-text"
    )
