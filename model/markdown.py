"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def write_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table, a line a row."""
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
