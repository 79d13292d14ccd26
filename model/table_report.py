"""Writes the paper's tables, ours beside them, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from model.bootstrap import Interval
from model.experiments import Finding
from model.markdown import write_table
from model.splits import LEAKY
from model.tables import COUNTED, Figure, PaperTable, Row, TablesReport

_MISSING: Final = "-"


def write_tables(report: TablesReport) -> str:
    """Write a report in Markdown; each table names its split and its budget."""
    made_with = f"Ours: {_split(report)}; {report.budget}; {report.judged} of {report.images} images judged."
    sections = [_head(report), *(_section(table, made_with) for table in report.tables)]
    if report.findings:
        sections.append(_trainings(report.findings))
    return "\n".join(sections)


def _split(report: TablesReport) -> str:
    return "**`leaky` split, by image**" if report.split == LEAKY else "split grouped by lesion"


def _head(report: TablesReport) -> str:
    known = f"{report.known} of the {report.judged} judged images"
    share = f" ({report.known / report.judged:.1%})" if report.known else ""
    words = {
        "lesion": f"Ours is grouped by lesion: {known} show a lesion that was also trained on.",
        LEAKY: f"**This split leaks.** {known}{share} show a lesion that was also trained on, as in the paper, so that "
        "every figure of ours here is too good. Use none of them to say how good a network is.",
    }
    return f"""# The paper's tables, and ours beside them

Paper: {report.source}. It splits by image, which leaks, and its checkpoints were chosen \
on the images that judge them.

{words[report.split]} {report.near_duplicates} images are near-duplicates of an image of another lesion on the other \
side.

Budget: {report.budget}. Where a row says "one step", the network is large and was given a single step of training, so \
that its figures say only that it runs. A network is judged by the argmax of its own output, as the paper's are; in \
brackets: 95 % intervals of a bootstrap of whole lesions, which know nothing of the chance in training. Data: \
`{report.data[:12]}`.
"""


def _section(table: PaperTable, made_with: str) -> str:
    line = "Ours: counted; no training." if table.number in COUNTED else made_with
    notes = "".join(f"* {note}\n" for note in table.notes)
    return f"## Table {table.number}: {table.title}\n\n{line}\n\n{_body(table)}" + (f"\n{notes}" if notes else "")


def _body(table: PaperTable) -> str:
    remarks = any(row.remark for row in table.rows)
    last = ("remark",) if remarks else ()
    if len(table.rows[0].figures) == 1:
        header = ("network", "paper", "ours", *last)
        rows = [[row.name, *_pair(row.figures[0]), *([row.remark] if remarks else [])] for row in table.rows]
        return write_table(header, rows)
    header = ("network", "", *(figure.name for figure in table.rows[0].figures), *last)
    return write_table(header, (line for row in table.rows for line in _two_lines(row, remarks=remarks)))


def _pair(figure: Figure) -> tuple[str, str]:
    return _say(figure.paper), _say(figure.ours)


def _two_lines(row: Row, *, remarks: bool) -> Iterator[list[str]]:
    pairs = [_pair(figure) for figure in row.figures]
    yield [row.name, "paper", *(paper for paper, _ in pairs), *([""] if remarks else [])]
    yield ["", "ours", *(ours for _, ours in pairs), *([row.remark] if remarks else [])]


def _say(value: Interval | float | None) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, Interval):
        return f"{value:.2f}"
    # Shares as the paper prints them; counts whole.
    return f"{value:.2f}" if value <= 1 else f"{value:.1f}".removesuffix(".0")


def _trainings(findings: tuple[Finding, ...]) -> str:
    rows = [
        (
            one.experiment,
            one.network.cut,
            f"{one.network.input_size}",
            one.weights,
            f"{one.trained}",
            f"{one.judged} of {one.lesions} lesions",
            "one step" if one.one_step else f"{one.epochs}",
            _MISSING if one.seconds_an_epoch is None else f"{one.seconds_an_epoch:.0f}",
        )
        for one in findings
    ]
    header = (
        "training",
        "cut",
        "pixels",
        "weights",
        "images trained on",
        "images judged",
        "epochs",
        "seconds an epoch",
    )
    return f"## How each network was trained\n\n{write_table(header, rows)}"
