"""Figures of the documents: how they look, and the plot of a table of measurements.

In: numbers. Out: SVG files that are readable on a light page and on a dark one. The module does not
know what was measured.
"""

from pathlib import Path
from typing import Any

import matplotlib
from bench_tables import Table, Value, format_value
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxcpt",
    "font.size": 10,
    "text.color": "#808080",  # readable on a light page and on a dark one
    "axes.labelcolor": "#808080",
    "axes.edgecolor": "#808080",
    "xtick.color": "#808080",
    "ytick.color": "#808080",
    "grid.color": "#808080",
    "grid.alpha": 0.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#3b82f6", "#e8710a", "#12a37a", "#a855f7")
WIDE_RANGE = 30
"""If the largest value is so many times the smallest, the axis is logarithmic."""


def draw_table(table: Table, file: Path) -> None:
    """A line for each row of the table, with a dot for each of the columns `table.plot`."""
    rows = [row for row in table.rows if _list_numbers(table, row)]
    values = [value for row in rows for value in _list_numbers(table, row)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.0 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, axis="x")
        for colour, column in zip(COLOURS, table.plot, strict=False):
            at = table.columns.index(column)
            dots = [
                (row[at], -place)
                for place, row in enumerate(rows)
                if isinstance(row[at], int | float)
            ]
            axes.plot(*zip(*dots, strict=True), "o", color=colour, label=column)
        axes.set_yticks([-place for place in range(len(rows))], [_name(table, row) for row in rows])
        axes.set_ylim(0.5 - len(rows), 0.5)
        if max(values) > WIDE_RANGE * min(values) > 0:
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.08 * max(values))
        if len(table.plot) == 1:
            axes.set_xlabel(table.plot[0])
        else:
            figure.legend(loc="outside upper right", frameon=False, ncols=len(table.plot))
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file, transparent=True, metadata={"Date": None})


def _list_numbers(table: Table, row: list[Value]) -> list[float]:
    values = [row[table.columns.index(column)] for column in table.plot]
    return [value for value in values if isinstance(value, int | float)]


def _name(table: Table, row: list[Value]) -> str:
    """The first field of a row. A number stands with the heading of its column."""
    return row[0] if isinstance(row[0], str) else f"{format_value(row[0])} {table.columns[0]}"
