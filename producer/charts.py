"""Charts: curves in the unit square as SVG without a script, each with a legend in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from producer.pages import Markup, element

#: Side of the square, and the room for its labels, in the drawing's own unit.
_SIDE: Final = 400
_LEFT, _BELOW, _AROUND = 52, 46, 10

#: Where lines of the grid stand.
_TICKS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve through points of the unit square."""

    #: In words, for the legend.
    name: str
    points: Sequence[tuple[float, float]]
    #: Its look in style.css, where no two differ by colour alone.
    look: str
    #: Lower and upper end of each point's interval; none draws none.
    bars: Sequence[tuple[float, float]] = ()
    #: Whether each point has a mark.
    marked: bool = False


def chart(title: str, lines: Sequence[Line], *, across: str, up: str, figures: Markup, note: str = "") -> Markup:
    """Draw curves over the unit square, with the diagonal for comparison.

    Args:
        title: What is shown.
        lines: The curves.
        across: What the horizontal axis means.
        up: What the vertical axis means.
        figures: The same as a table, to open below.
        note: A sentence below; empty for none.

    Returns:
        A figure.
    """
    diagonal = element("line", x1=_x(0), y1=_y(0), x2=_x(1), y2=_y(1), class_="diagonal")
    label = f"{title}: a line chart; the table below has its figures"
    size = f"0 0 {_LEFT + _SIDE + _AROUND} {_AROUND + _SIDE + _BELOW}"
    drawn = (piece for line in lines for piece in _curve(line))
    drawing = element("svg", *_axes(across, up), diagonal, *drawn, viewBox=size, role="img", aria_label=label)
    legend = element("ul", *(element("li", _swatch(line), line.name) for line in lines), class_="legend")
    below = [element("p", note, class_="note")] if note else []
    caption = element("figcaption", title)
    return element(
        "figure", caption, drawing, legend, *below, element("details", element("summary", "Figures"), figures)
    )


def _x(share: float) -> float:
    return round(_LEFT + share * _SIDE, 1)


def _y(share: float) -> float:
    return round(_AROUND + (1 - share) * _SIDE, 1)


def _axes(across: str, up: str) -> list[Markup]:
    made = []
    for tick in _TICKS:
        made += [
            element("line", x1=_x(0), x2=_x(1), y1=_y(tick), y2=_y(tick)),
            element("line", x1=_x(tick), x2=_x(tick), y1=_y(0), y2=_y(1)),
            element("text", f"{tick:g}", x=_x(0) - 6, y=_y(tick) + 4, text_anchor="end"),
            element("text", f"{tick:g}", x=_x(tick), y=_y(0) + 17, text_anchor="middle"),
        ]
    middle = _y(0.5)
    made.append(element("text", across, x=_x(0.5), y=_y(0) + 38, text_anchor="middle"))
    made.append(element("text", up, x=13, y=middle, text_anchor="middle", transform=f"rotate(-90 13 {middle})"))
    return made


def _curve(line: Line) -> list[Markup]:
    made = [
        element("line", x1=_x(x), x2=_x(x), y1=_y(low), y2=_y(high), class_=f"bar {line.look}")
        for (x, _), (low, high) in zip(line.points, line.bars, strict=False)
    ]
    if len(line.points) > 1:
        path = " ".join(f"{_x(x):g},{_y(y):g}" for x, y in line.points)
        made.append(element("polyline", points=path, class_=f"curve {line.look}"))
    if line.marked:
        made += [element("circle", cx=_x(x), cy=_y(y), r=4.5, class_=f"dot {line.look}") for x, y in line.points]
    return made


def _swatch(line: Line) -> Markup:
    parts = [element("line", x1=2, x2=34, y1=7, y2=7, class_=f"curve {line.look}")] if len(line.points) > 1 else []
    parts += [element("circle", cx=18, cy=7, r=4.5, class_=f"dot {line.look}")] if line.marked else []
    return element("svg", *parts, viewBox="0 0 36 14", aria_hidden="true")
