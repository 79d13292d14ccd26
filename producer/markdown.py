"""Markdown of a model card as HTML: headings, paragraphs, lists and tables, every letter of it escaped."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from producer.pages import Markup, element, escape, join, table

_HEADING: Final = re.compile(r"(#{1,4}) +(.+)")
_RULE: Final = re.compile(r"\|( *:?-+:? *\|)+")
_SPAN: Final = re.compile(r"(`[^`]+`|\*\*[^*]+\*\*)")

#: A card's title stands below the section's, which is an h2.
_DEEPER: Final = 2


def render(text: str) -> Markup:
    """Render what `model.card` writes; whatever else stands there becomes a paragraph.

    Args:
        text: Markdown.

    Returns:
        HTML without a link, picture or attribute from the text.
    """
    return join(_blocks(text))


def _blocks(text: str) -> Iterator[Markup]:
    caption = "Model card"
    for kind, lines in groupby(text.splitlines(), key=_kind):
        if kind == "table":
            yield _table(caption, list(lines))
        elif kind == "list":
            yield element("ul", *(element("li", _spans(line[2:])) for line in lines))
        elif kind == "text":
            yield element("p", _spans(" ".join(lines)))
        elif kind == "heading":
            for line in lines:
                level, caption = _split_heading(line)
                yield element(f"h{level}", _spans(caption))


def _kind(line: str) -> str:
    if not line.strip():
        return "nothing"
    if line.startswith("|"):
        return "table"
    if line.startswith("* "):
        return "list"
    return "heading" if _HEADING.fullmatch(line) else "text"


def _split_heading(line: str) -> tuple[int, str]:
    found = _HEADING.fullmatch(line)
    return (len(found[1]) + _DEEPER, found[2]) if found else (1 + _DEEPER, line)


def _table(caption: str, lines: Sequence[str]) -> Markup:
    rows = [[_spans(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines]
    if len(lines) > 1 and _RULE.fullmatch(lines[1]):
        head, rows = rows[0], rows[2:]
    else:
        head = [Markup("")] * len(rows[0])
    # A head without a name says nothing to a screen reader.
    names = [name or ("what" if place == 0 else "value") for place, name in enumerate(head)]
    return table(caption, names, rows)


def _spans(text: str) -> Markup:
    return Markup("".join(map(_span, _SPAN.split(text))))


def _span(piece: str) -> Markup:
    if _SPAN.fullmatch(piece):
        return element("code", piece[1:-1]) if piece.startswith("`") else element("strong", piece[2:-2])
    return escape(piece)
