"""The paper's tables with our figures beside its own: which training each row is, and how the tables are written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

from model import paper
from model.architectures import TABLE_8, paper_network, recipe_network
from model.backbones import BackboneName
from model.bootstrap import Interval
from model.dataset import LabelledImage, digest_data, read_image
from model.duplicates import near_duplicates, perceptual_hash
from model.experiments import Budget, Experiment, Finding, Laboratory, Split
from model.labels import CLASSES
from model.splits import count_known, count_leaks, in_gate_set
from model.summary import NetworkSize, weigh_network

#: The table whose columns are costs too.
_COSTS: Final = 10
#: Tables that need no training.
COUNTED: Final = (1, 2)
NUMBERS: Final = tuple(range(1, 11))

#: The cut of the optimised network of Tables 9 and 10. The paper does not say which cut the .84 of its Tables 4 to 7
#: has; Table 8 gives .84 to [:246] and [:230], and on the map of [:230] attention is a constant.
_OPTIMISED, _PLAIN_CUT = "[:240]", "[:246]"
_MOBILE: Final[BackboneName] = "MobileNetV3Large"
#: Networks of more than 15 million parameters, of which two cores train a few images a second.
LARGE: Final[frozenset[BackboneName]] = frozenset(
    {"DenseNet201", "InceptionResNetV2", "ResNet50", "ResNet152", "VGG16", "NASNetLarge"}
)

_MEANS: Final = {
    "accuracy": "accuracy",
    "paper_balanced_accuracy": "balanced accuracy (the paper's)",
    "precision": "precision",
    "f1": "F1",
    "balanced_accuracy": "sensitivity",
    "specificity": "specificity",
    "macro_auc": "ROC AUC",
}
_WEIGHTED: Final = {
    "accuracy": "accuracy",
    "weighted_precision": "precision",
    "weighted_f1": "F1",
    "weighted_sensitivity": "sensitivity",
    "specificity": "specificity",
    "macro_auc": "ROC AUC",
}


#: The seven diagnoses' figures, then their mean.
_Figures: TypeAlias = tuple[float, ...]


class Figure(BaseModel):
    """One figure of a table.

    Attributes:
        name: Column.
        paper: What the paper prints, or None.
        ours: With its 95 % interval by lesion where it was measured on images; None where the row was not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    paper: float | None
    ours: Interval | float | None


class Row(BaseModel):
    """One network of a table.

    Attributes:
        name: Of the network.
        figures: In the order of the columns.
        remark: How our figures came to be less than they could be, or "".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    figures: tuple[Figure, ...]
    remark: str = ""


class PaperTable(BaseModel):
    """One of the paper's tables.

    Attributes:
        number: The paper's.
        title: What it is about.
        rows: In the paper's order.
        notes: Known faults of the paper's table, and what ours does otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class TablesReport(BaseModel):
    """All tables, and what they were made with.

    Attributes:
        source: Where the paper's figures stand.
        data: Digest of the images, lesions and diagnoses read.
        split: "lesion", or "leaky".
        budget: What each network was given; one of a single step had less.
        images: Images of the budget, judged or trained on.
        judged: Images judged.
        known: Judged images whose lesion was trained on: what the leak guard counts.
        near_duplicates: Images, on either side, that are near-duplicates of one of another lesion on the other.
        tables: The tables asked for.
        findings: What the trainings gave.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = paper.SOURCE
    data: str
    split: Split
    budget: Budget
    images: int
    judged: int
    known: int
    near_duplicates: int
    tables: tuple[PaperTable, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A row before it is run: its name, its training, and the paper's figures by those of `model.measures`."""

    name: str
    backbone: BackboneName
    experiment: Experiment
    paper: Mapping[str, float]


def repeat_tables(
    laboratory: Laboratory,
    rows: Sequence[LabelledImage],
    numbers: Collection[int],
    backbones: Collection[str],
) -> TablesReport:
    """Run what tables need and fill them.

    Args:
        laboratory: Runs the trainings.
        rows: All labelled images, for Table 1.
        numbers: Of the tables.
        backbones: Only these are trained and counted; the rows of the others stay empty.

    Raises:
        ModelError: The weights cannot be had, or are not a backbone's.
    """
    used, judged = laboratory.sides()
    lesions = [row.lesion_id for row in used]
    seen = laboratory.track("looking for near-duplicates", used)
    alike = near_duplicates(np.stack([perceptual_hash(read_image(row), row.frame) for row in seen]))
    _, near = count_leaks(judged.astype(np.int64), lesions, alike)
    findings = {one.name: laboratory.run(one) for one in plan_tables(numbers, backbones)}
    sizes = _weigh(numbers, backbones, laboratory)
    filled = {1: count_samples(rows), 2: fill_sizes(sizes)} if set(numbers) & set(COUNTED) else {}
    return TablesReport(
        data=digest_data(used),
        split=laboratory.split,
        budget=laboratory.budget,
        images=len(used),
        judged=int(judged.sum()),
        known=count_known(judged, lesions),
        near_duplicates=near,
        tables=tuple(filled.get(number) or fill_table(number, findings, sizes) for number in sorted(set(numbers))),
        findings=tuple(findings.values()),
    )


def _weigh(
    numbers: Collection[int], backbones: Collection[str], laboratory: Laboratory
) -> dict[BackboneName, NetworkSize]:
    tables = {2: paper.TABLE_2, _COSTS: paper.TABLE_10}
    wanted = dict.fromkeys(name for number in tables if number in numbers for name in tables[number])
    chosen = [name for name in wanted if name in backbones]
    return {name: weigh_network(name) for name in laboratory.track("counting parameters", chosen)}


def plan_tables(numbers: Collection[int], backbones: Collection[str]) -> list[Experiment]:
    """List the trainings that tables need, each once.

    Args:
        numbers: Of the tables.
        backbones: Only these.
    """
    lines = [line for number in sorted(numbers) for line in _LINES.get(number, ()) if line.backbone in backbones]
    return list({line.experiment.name: line.experiment for line in lines}.values())


def fill_table(number: int, found: Mapping[str, Finding], sizes: Mapping[BackboneName, NetworkSize]) -> PaperTable:
    """Fill a table that needs training.

    Args:
        number: 3 to 10.
        found: By name of the experiment; rows without stay empty.
        sizes: By backbone; Table 10's parameters and depth.
    """
    rows = []
    for line in _LINES[number]:
        finding = found.get(line.experiment.name)
        figures = [
            Figure(name=_column(number, name), paper=value, ours=None if finding is None else finding.figures.get(name))
            for name, value in line.paper.items()
        ]
        if number == _COSTS:
            figures = [*_costs(line.backbone, sizes), *figures, _seconds(line.backbone, finding)]
        rows.append(Row(name=line.name, figures=tuple(figures), remark=_remark(finding)))
    return PaperTable(number=number, title=_TITLES[number], rows=tuple(rows), notes=paper.FAULTS.get(number, ()))


def _class_lines(
    figure: str, mean: str, augmented: Mapping[BackboneName, _Figures], weighted: Mapping[BackboneName, _Figures]
) -> list[_Line]:
    names = [*(f"{figure}_{label}" for label in CLASSES), mean]
    return [
        _line(name, recipe, dict(zip(names, values, strict=True)))
        for recipe, table in (("augmented", augmented), ("metadata", weighted))
        for name, values in table.items()
    ]


def _line(backbone: BackboneName, recipe: str, figures: Mapping[str, float]) -> _Line:
    if recipe == "augmented":
        network = recipe_network("paper-augmented", backbone)
        experiment = Experiment(name=f"{backbone}, augmented", recipe="paper-augmented", network=network)
    elif backbone == _MOBILE:
        experiment = _cut(_PLAIN_CUT)
    else:
        experiment = Experiment(
            name=f"{backbone}, metadata and weights", recipe="paper-metadata", network=paper_network(backbone)
        )
    words = {"augmented": "augmented", "metadata": "metadata and weights"}[recipe]
    return _Line(name=f"{backbone}, {words}", backbone=backbone, experiment=experiment, paper=figures)


def _cut_line(name: str, figures: Mapping[str, float]) -> _Line:
    return _Line(name=f"{_MOBILE} {name}", backbone=_MOBILE, experiment=_cut(name), paper=figures)


def _cut(name: str) -> Experiment:
    """Name a row of Table 8, which is also what other tables mean by MobileNetV3Large."""
    return Experiment(name=f"{_MOBILE} {name}", recipe="paper-metadata", network=TABLE_8[name])


#: The rows of each table that needs training.
_LINES: Final[Mapping[int, Sequence[_Line]]] = {
    3: [_line(name, "augmented", {"accuracy": value}) for name, value in paper.TABLE_3.items()],
    4: [_line(name, "metadata", {"accuracy": value}) for name, value in paper.TABLE_4.items()],
    5: _class_lines("f1", "f1", paper.TABLE_5_AUGMENTED, paper.TABLE_5_METADATA),
    6: _class_lines("recall", "balanced_accuracy", paper.TABLE_6_AUGMENTED, paper.TABLE_6_METADATA),
    7: [_line(name, "metadata", dict(zip(_MEANS, row, strict=True))) for name, row in paper.TABLE_7.items()],
    8: [_cut_line(name, {"accuracy": value}) for name, value in paper.TABLE_8.items()],
    9: [_cut_line(_OPTIMISED, dict(zip(_WEIGHTED, paper.TABLE_9, strict=True)))],
    10: [
        _cut_line(_OPTIMISED, {"accuracy": row[2]})
        if name == _MOBILE
        else _line(name, "metadata", {"accuracy": row[2]})
        for name, row in paper.TABLE_10.items()
    ],
}


def _column(number: int, name: str) -> str:
    if number in (5, 6):
        return name.partition("_")[2] if name.partition("_")[2] in CLASSES else "mean"
    return {**_MEANS, **_WEIGHTED}[name]


def _remark(finding: Finding | None) -> str:
    if finding is None:
        return "not run"
    if finding.problem is not None:
        return finding.problem
    return f"one step, {finding.judged} images judged" if finding.one_step else ""


_TITLES: Final = {
    1: "images of each diagnosis",
    2: "size, parameters and depth of the ImageNet networks",
    3: "accuracy with augmented data",
    4: "accuracy with metadata and a weighted loss",
    5: "F1 by diagnosis",
    6: "recall by diagnosis",
    7: "means over the diagnoses, with metadata and a weighted loss",
    8: "where MobileNetV3Large is cut: accuracy with soft attention and metadata",
    9: "the optimised MobileNetV3Large",
    10: "cost and accuracy",
}


def count_samples(rows: Sequence[LabelledImage]) -> PaperTable:
    """Fill Table 1 from all images there are."""
    counts = np.bincount([row.label for row in rows], minlength=len(CLASSES))
    held = sum(in_gate_set(row.lesion_id) for row in rows)
    pairs = [*zip(CLASSES, paper.TABLE_1.values(), counts.tolist(), strict=True)]
    pairs.append(("total", sum(paper.TABLE_1.values()), len(rows)))
    figures = tuple(Figure(name=name, paper=printed, ours=count) for name, printed, count in pairs)
    note = f"{held} of our images belong to the gate set, a tenth of the lesions that nothing here trains on or judges."
    return PaperTable(number=1, title=_TITLES[1], rows=(Row(name="images", figures=figures),), notes=(note,))


def fill_sizes(sizes: Mapping[BackboneName, NetworkSize]) -> PaperTable:
    """Fill Table 2."""
    rows = []
    for name, (megabytes, millions, depth) in paper.TABLE_2.items():
        size = sizes.get(name)
        figures = (
            Figure(name="MB", paper=megabytes, ours=size and size.megabytes),
            Figure(name="parameters (million)", paper=millions, ours=size and size.millions),
            Figure(name="depth", paper=depth, ours=size and size.depth),
            Figure(name="with soft attention (million)", paper=None, ours=size and size.ours),
        )
        rows.append(Row(name=name, figures=figures, remark="" if size else "not run"))
    return PaperTable(number=2, title=_TITLES[2], rows=tuple(rows), notes=paper.FAULTS[2])


def _costs(backbone: BackboneName, sizes: Mapping[BackboneName, NetworkSize]) -> Iterable[Figure]:
    millions, depth, _, _ = paper.TABLE_10[backbone]
    size = sizes.get(backbone)
    yield Figure(name="parameters (million)", paper=millions, ours=size and size.millions)
    yield Figure(name="depth", paper=depth, ours=size and size.depth)


def _seconds(backbone: BackboneName, finding: Finding | None) -> Figure:
    return Figure(name="seconds an epoch", paper=paper.TABLE_10[backbone][3], ours=finding and finding.seconds_an_epoch)
