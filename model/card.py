"""The model card (Mitchell et al. 2019), written from the manifest and from what the gate said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from model.artifact import CARD, Manifest, read_manifest, replace_file
from model.bootstrap import Interval
from model.errors import ArtifactError
from model.gate import GateReport
from model.labels import CLASSES
from model.markdown import write_table
from model.report import Evaluation, Explanation

#: What the gate said of a model, beside its artifact.
GATE: Final = "gate.json"


def model_card(manifest: Manifest, gate: GateReport | None = None) -> str:
    """Write the card in Markdown; every figure stands with its 95 % interval by lesion.

    Args:
        manifest: The model's.
        gate: What the gate said of it, where it was asked.
    """
    found = Evaluation.model_validate(manifest.metrics)
    sections = [
        _identity(manifest),
        _figures(found, "On held-out lesions"),
        _classes(found),
        _calibration(manifest, found),
        _operating_point(manifest, found),
        _referral(manifest, found),
        _subgroups(found),
        *([] if found.explanation is None else [explanation_section(manifest, found.explanation)]),
        *([_trials(found)] if found.trials else []),
        *([] if gate is None else [_gate(gate)]),
        _LIMITS,
    ]
    return "\n".join(sections)


def read_card(folder: Path) -> str:
    """Write the card of an artifact.

    Raises:
        ArtifactError: The manifest, or what the gate said, cannot be read.
    """
    return model_card(read_manifest(folder), _read_gate(folder))


def write_gate(folder: Path, report: GateReport) -> None:
    """Put what the gate said beside an artifact, and into its card; the model and its digest stay what they are."""
    replace_file(folder / GATE, report.model_dump_json(indent=1).encode())
    replace_file(folder / CARD, read_card(folder).encode())


def _read_gate(folder: Path) -> GateReport | None:
    try:
        return GateReport.model_validate_json((folder / GATE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise ArtifactError(f"The model's {GATE} is not what the gate writes: delete it.") from None


def evaluation_tables(found: Evaluation) -> str:
    """Write the figures of an evaluation in Markdown: overall, by diagnosis and by subgroup."""
    return "\n".join([_figures(found, "On these images"), _classes(found), _subgroups(found)])


def _percent(figure: Interval) -> str:
    return f"{figure:.1%}"


def _identity(manifest: Manifest) -> str:
    network, training = manifest.network, manifest.training
    attention = "no" if network.attention == "none" else f"{network.attention} ({network.heads} heads)"
    rows = [
        ("model digest", f"`{manifest.digest}`"),
        (
            "network",
            (
                f"{network.backbones}, {attention} soft attention, metadata branch `{network.metadata}`, "
                f"{' and '.join(map(str, network.sizes))} px"
            ),
        ),
        ("recipe", f"{training.recipe.get('name', 'default')}"),
        ("trained on", training.data),
        ("data digest", f"`{training.data_digest}`"),
        ("judged on", f"{training.held_out}; the gate set (a tenth of the lesions) was never seen"),
        ("program", f"commit `{training.git_commit}`"),
        ("weights", f"float16, sha256 `{manifest.weights_sha256}`"),
    ]
    return f"""# {manifest.name}

**Not a medical device.** It orders dermoscopic images for a person to read; a low score means "not prioritised".

{write_table(("", ""), rows)}"""


def _figures(found: Evaluation, where: str) -> str:
    rows = [("balanced accuracy: mean recall (ISIC's)", f"{found.balanced_accuracy:.3f}")]
    if found.balanced_accuracy_without_metadata is not None and found.metadata_gain is not None:
        rows += [
            ("the same with all metadata removed", f"{found.balanced_accuracy_without_metadata:.3f}"),
            ("what metadata add to it", f"{found.metadata_gain:.3f}"),
        ]
    rows += [
        (
            "balanced accuracy: mean of (sensitivity + specificity) / 2 (the paper's)",
            f"{found.paper_balanced_accuracy:.3f}",
        ),
        ("accuracy of `diagnosis`", f"{found.accuracy:.3f}"),
        ("accuracy of the posterior's argmax", f"{found.accuracy_of_posterior:.3f}"),
        ("macro precision", f"{found.precision:.3f}"),
        ("macro F1", f"{found.f1:.3f}"),
        ("macro specificity", f"{found.specificity:.3f}"),
        ("macro ROC AUC", f"{found.macro_auc:.3f}"),
        ("malignant ROC AUC", f"{found.malignant_auc:.3f}"),
    ]
    return f"""## {where}: {found.images} images of {found.lesions} lesions

`diagnosis` is the argmax of posterior / prior. In brackets: 95 % intervals of a bootstrap of whole lesions \
({found.draws} draws).

{write_table(("figure", "value (95 % interval)"), rows)}"""


def _classes(found: Evaluation) -> str:
    rows = [
        (
            name,
            *(
                str(count)
                for count in (one.true_positives, one.false_positives, one.false_negatives, one.true_negatives)
            ),
            *(f"{figure:.3f}" for figure in (one.sensitivity, one.specificity, one.precision, one.f1, one.auc)),
        )
        for name, one in found.classes.items()
    ]
    matrix = [(name, *(str(count) for count in counts)) for name, counts in zip(CLASSES, found.confusion, strict=True)]
    header = ("class", "TP", "FP", "FN", "TN", "sensitivity", "specificity", "precision", "F1", "ROC AUC")
    return f"""## By diagnosis

{write_table(header, rows)}
Truth in rows, `diagnosis` in columns:

{write_table(("", *CLASSES), matrix)}"""


def _calibration(manifest: Manifest, found: Evaluation) -> str:
    before, after = found.calibration_before, found.calibration
    rows = [
        (words, f"{getattr(before, name):.3f}", f"{getattr(after, name):.3f}")
        for words, name in (
            ("argmax of the posterior", "top_class"),
            ("`confidence` of `diagnosis`", "diagnosis"),
            ("every class against the rest, averaged", "all_classes"),
            ("malignant score", "malignant"),
        )
    ]
    return f"""## Calibration

Temperature {manifest.calibration.temperature:.3f}, and an offset for each class, which is part of the network's last \
bias. Expected calibration error over 15 bins; each image is judged with a calibration fitted to other lesions.

{write_table(("what is calibrated", "before", "after"), rows)}"""


def _operating_point(manifest: Manifest, found: Evaluation) -> str:
    point = found.operating_point
    rows = [
        ("malignant or premalignant lesions flagged or referred", _percent(point.sensitivity)),
        ("… by the score alone", _percent(point.sensitivity_by_score)),
        ("melanomas flagged or referred", _percent(point.melanoma_sensitivity)),
        ("… by the score alone", _percent(point.melanoma_sensitivity_by_score)),
        ("benign lesions neither flagged nor referred", _percent(point.specificity)),
        ("… not flagged by the score", _percent(point.specificity_by_score)),
        ("proven by histology: malignant lesions flagged or referred", _percent(point.histology_sensitivity)),
        ("proven by histology: benign lesions neither flagged nor referred", _percent(point.histology_specificity)),
    ]
    return f"""## Operating point

A lesion is flagged where the malignant score of any of its images reaches {manifest.operating_point.threshold:.4f}: the
highest score that alone finds 95 % of malignant or premalignant lesions and 95 % of melanomas (chosen anew on each \
draw: {point.threshold.low:.4f} to {point.threshold.high:.4f}). Judged on {point.lesions} lesions, \
{point.prevalence:.1%} of \
them malignant or premalignant; {point.histology_lesions} were proven by histology: nevi known from follow-up flatter \
specificity.

{write_table(("share of lesions", "value (95 % interval)"), rows)}"""


def _referral(manifest: Manifest, found: Evaluation) -> str:
    referral = found.referral
    classes = [(name, "none" if share is None else f"{share:.1%}") for name, share in referral.by_class.items()]
    return f"""## Referral

{_percent(referral.referred)} of the images go to a person whatever their score: {referral.unfamiliar:.1%} \
because they lie farther than {manifest.referral.max_distance:.3g} from the images of training in feature space \
(`unfamiliar_image`), \
{referral.low_confidence:.1%} because they are too close to
call (`low_confidence`). Each image is judged with thresholds chosen on other lesions.

{write_table(("diagnosis", "images referred"), classes)}"""


def _subgroups(found: Evaluation) -> str:
    rows = [
        (
            one.field,
            one.group,
            str(one.images),
            str(one.lesions),
            str(one.malignant_lesions),
            f"{one.balanced_accuracy:.3f}",
            f"{one.malignant_auc:.3f}",
            _percent(one.sensitivity),
            _percent(one.specificity),
            _percent(one.referred),
        )
        for one in found.subgroups
    ]
    header = ("by", "group", "images", "lesions", "malignant", "balanced accuracy", "malignant AUC")
    return f"""## Subgroups

At the same operating point; malignant lesions count as found when flagged or referred. Where few are malignant, the
interval of a sensitivity says little.

{write_table((*header, "sensitivity", "specificity", "referred"), rows)}"""


def explanation_section(manifest: Manifest, found: Explanation) -> str:
    """Write the deletion test in Markdown, with what it says of the attention map."""
    names = {"attention": f"{manifest.network.attention} soft attention", "grad_cam": "Grad-CAM (baseline)"}
    names["evidence"] = "evidence (what worklists draw)"
    names["centre"] = "from the middle outwards (knows nothing of the model)"
    rows = [
        (
            names[name],
            f"{figures.area:.3f}",
            f"{figures.less_than_random:.3f}",
            "" if figures.attention_minus is None else f"{figures.attention_minus:.3f}",
        )
        for name, figures in found.maps.items()
    ]
    if found.random is not None:
        rows.append(("random", f"{found.random:.3f}", "", ""))
    become = {"border": "take the colour of the image's border", "blur": "are blurred away"}[found.fill]
    header = ("order", "area under the curve", "less than random order", "attention's area minus this one's")
    return f"""## What the maps point at

Deletion test on {found.images} images, each of another lesion: pixels {become} in the order of the map, and the
probability of the diagnosis falls. A smaller area means the map finds earlier what the model uses; one that does no
better than random is no explanation. {_conclude(found)}

{write_table(header, rows)}"""


def _conclude(found: Explanation) -> str:
    return " ".join(_verdicts(found))


def _verdicts(found: Explanation) -> Iterator[str]:
    for name, words in (("attention", "the attention map"), ("evidence", "evidence")):
        if name in found.maps and (said := _against_chance(found.maps[name].less_than_random)):
            yield f"Here {words} {said}"
    orders = (
        ("evidence", "Evidence"),
        ("grad_cam", "Grad-CAM"),
        ("centre", "The plain order from the middle outwards"),
    )
    for name, words in orders:
        against = found.maps[name].attention_minus if name in found.maps else None
        if against is None or against.low is None or against.high is None:
            continue
        if against.low > 0:
            yield f"{words} does better than attention."
        elif against.high < 0:
            yield f"{words} does worse than attention."
        else:
            yield f"{words} does no better and no worse than attention, within the noise."


def _against_chance(less_than_random: Interval) -> str | None:
    if less_than_random.low is None or less_than_random.high is None:
        return None
    if less_than_random.low > 0:
        return "points at what the model uses more than chance does."
    if less_than_random.high < 0:
        return "points away from what the model uses: do not read it as an explanation."
    return "is no better than chance, within the noise: do not read it as an explanation."


def _gate(report: GateReport) -> str:
    lines = [
        "## Gate\n",
        (
            f"Compared with the active model `{report.active}` on gate set `{report.gate_set[:12]}`, use "
            f"{report.uses} of it: **{report.verdict}**.\n"
        ),
    ]
    decision = report.decision
    if decision is None:
        return "\n".join([*lines, f"{report.problem}\n"])
    if not report.independent:
        lines.append("The gate set is part of the candidate's own data, so the gate promotes nothing by itself.\n")
    lines.append(
        f"{decision.images:,} images of {decision.lesions:,} lesions, {decision.malignant_lesions} of them malignant; "
        f"{decision.draws:,} draws of lesions within their diagnosis. A difference below 0 is worse.\n"
    )
    rows = [
        (
            figure.name,
            f"{figure.candidate:.3f}",
            f"{figure.active:.3f}",
            f"{figure.difference:+.3f} ({figure.low:+.3f} to {figure.high:+.3f})",
            f"{figure.margin:g}",
        )
        for figure in decision.figures
    ]
    header = ("figure", "candidate", "active", "difference (90 %)", "margin")
    reasons = "".join(f"* {reason}\n" for reason in decision.reasons)
    return "\n".join([*lines, write_table(header, rows), reasons])


def _trials(found: Evaluation) -> str:
    rows = [
        (
            one.name,
            one.judged_on,
            f"{one.balanced_accuracy:.3f}",
            f"{one.macro_auc:.3f}",
            f"{one.melanoma_recall:.3f}",
        )
        for one in found.trials
    ]
    return f"""## What was tried

{write_table(("what", "judged on", "balanced accuracy", "macro AUC", "melanoma recall"), rows)}"""


_LIMITS = """## Limits

One centre's images dominate the training data, mostly of light skin; no smartphone pictures, no other diagnoses than
the seven. Probabilities hold at the training prior and drift with prevalence.
"""
