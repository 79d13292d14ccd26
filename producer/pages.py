"""Pages: pieces of HTML that are escaped by construction, tables and bar charts as SVG without a script."""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

#: Nothing but what lies beside the page, and pictures within its data. A page that is opened as a file has no origin,
#: so `file:` is named for browsers to which that is not 'self'; served by a web server it allows nothing.
POLICY: Final = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


#: A number, with a percent sign or an interval perhaps, or what stands where there is none.
_NUMBER: Final = re.compile(r"[-+]?[\d.,]+ ?%?( \([-+]?[\d.,]+%? to [-+]?[\d.,]+%?\))?|undefined")

#: From here on an axis counts in thousands.
_THOUSANDS: Final = 10_000


#: Elements without content and without an end.
_VOID: Final = frozenset({"img"})


class Markup(str):
    """Text that is HTML already; whatever is not of this class is escaped."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Make any text, that of a file name say, harmless HTML.

    Args:
        text: Anything; numbers get thousands separators.

    Returns:
        HTML.
    """
    if isinstance(text, Markup):
        return text
    if isinstance(text, int) and not isinstance(text, bool):
        return Markup(f"{text:,}")
    plain = str(text).encode("utf-8", "backslashreplace").decode()
    return Markup(html.escape("".join(letter if letter.isprintable() else "\ufffd" for letter in plain)))


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """Make an element.

    Args:
        tag: Its name.
        content: What is in it, escaped unless it is `Markup`.
        attributes: By name; a trailing underscore is dropped and others become hyphens, None leaves one out.

    Returns:
        The element.
    """
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    end = "" if tag in _VOID else f"</{tag}>"
    return Markup(f"<{tag}{told}>{''.join(map(escape, content))}{end}")


def join(pieces: Iterable[Markup]) -> Markup:
    """Put pieces of HTML after each other."""
    return Markup("\n".join(pieces))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, facts: bool = False) -> Markup:
    """Lay rows out as a table whose first column names them.

    Args:
        caption: What it shows.
        head: Names of the columns.
        rows: Cells, the first of which is the row's name.
        facts: Whether a column holds things of several kinds, so that its numbers are not set to the right.

    Returns:
        The table.
    """
    filled = [list(row) for row in rows]
    columns = [[row[place] for row in filled if place < len(row)] for place in range(1, len(head))]
    sides = [None, *("number" if not facts and cells and all(map(_is_number, cells)) else None for cells in columns)]
    first = element(
        "tr", *(element("th", name, scope="col", class_=side) for name, side in zip(head, sides, strict=True))
    )
    body = [
        element(
            "tr", element("th", name, scope="row"), *(element("td", cell) if facts else _cell(cell) for cell in cells)
        )
        for name, *cells in filled
    ]
    caption_ = element("caption", caption)
    return element("div", element("table", caption_, element("thead", first), element("tbody", *body)), class_="scroll")


def _is_number(content: object) -> bool:
    return _NUMBER.fullmatch(str(content)) is not None


def _cell(content: object) -> Markup:
    if not _is_number(content):
        return element("td", content)
    value, bracket, rest = str(content).partition(" (")
    if not bracket:
        return element("td", content, class_="number")
    # Where a column is narrow, the interval goes to the next line as a whole.
    return element("td", value, " ", element("span", "(", rest, class_="interval"), class_="number")


def histogram(title: str, counts: Sequence[int], *, mark: float | None = None, said: str = "") -> Markup:
    """Draw counts over [0, 1] as bars on a logarithmic scale, with the figures as a table to open below.

    Args:
        title: What is counted.
        counts: Of bins of equal width.
        mark: Where a vertical line stands.
        said: What that line is.

    Returns:
        A figure.
    """
    width, height, left, bottom = 560, 200, 44, 28
    step = (width - left) / len(counts)
    top = max([*counts, 1])
    decades = len(str(top))
    bars = [_bar(left + number * step, step, count, decades, height) for number, count in enumerate(counts)]
    lines = [_grid(10**power, decades, left, width, height) for power in range(decades + 1)]
    ticks = [
        element(
            "text", f"{share / 4:g}", x=round(left + share / 4 * (width - left)), y=height + 18, text_anchor="middle"
        )
        for share in range(5)
    ]
    if mark is not None:
        x = round(left + mark * (width - left), 1)
        lines.append(element("line", x1=x, x2=x, y1=0, y2=height, class_="mark"))
    label = f"{title}: a histogram; the table below has its figures"
    drawing = element(
        "svg", *lines, *bars, *ticks, viewBox=f"0 -12 {width + 14} {height + bottom + 12}", role="img", aria_label=label
    )
    rows = [(f"{n / len(counts):g} to {(n + 1) / len(counts):g}", count) for n, count in enumerate(counts)]
    figures = element("details", element("summary", "Figures"), table(title, ("from", "images"), rows))
    note = element("p", f"The line: {said}.", class_="note") if said else Markup("")
    caption = element("figcaption", title, " ", element("small", "(images, logarithmic scale)"))
    return element("figure", caption, drawing, note, figures)


def _bar(x: float, step: float, count: int, decades: int, height: int) -> Markup:
    tall = _tall(count, decades, height)
    title = element("title", f"{count:,}")
    return element("rect", title, x=round(x + 1, 1), y=round(height - tall, 1), width=round(step - 2, 1), height=tall)


def _grid(count: int, decades: int, left: int, width: int, height: int) -> Markup:
    y = round(height - _tall(count, decades, height), 1)
    label = element(
        "text", f"{count:,}" if count < _THOUSANDS else f"{count // 1000:,} k", x=left - 6, y=y + 4, text_anchor="end"
    )
    return Markup(element("line", x1=left, x2=width, y1=y, y2=y) + label)


def _tall(count: int, decades: int, height: int) -> float:
    # One image is seen as well: a logarithmic scale from a half on.
    return 0.0 if count < 1 else round(height * (math.log10(count) + 0.3) / (decades + 0.3), 1)


def page(title: str, body: Markup, *, scripts: Sequence[str] = ()) -> str:
    """Put a whole page together.

    Args:
        title: Its title.
        body: What is in it.
        scripts: Files beside it, in the order they run.

    Returns:
        The page.
    """
    loaded = "".join(f'<script src="{html.escape(name)}" defer></script>\n' for name in scripts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY, quote=False)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="robots" content="noindex">\n'
        f"<title>{escape(title)}</title>\n"
        f'<link rel="stylesheet" href="style.css">\n{loaded}</head>\n<body>\n{body}\n</body>\n</html>\n'
    )
