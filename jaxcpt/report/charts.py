"""Curves in, SVG elements for a page out. Only this module imports matplotlib.

It knows no run and no file.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

LARGEST = 1e100
"""Larger values are counted and not drawn: axes that reach farther overflow."""
POINTS = 400
"""Most points that a curve is drawn with. A screen does not show more."""


@dataclass(frozen=True)
class Chart:
    """One set of axes: its title, the scalars that it shows, and how it shows them."""

    title: str
    names: tuple[str, ...]
    percent: bool = False
    logarithmic: bool = False
    smooth: bool = True


COLOURS = ("#3b82f6", "#e8710a", "#12a37a", "#a855f7", "#db2777", "#64748b")
INK = "#010203"  # Replaced by the page's text colour, which is light or dark.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxcpt",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "axes.formatter.limits": (-4, 6),
}

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps, and the value at each step."""


def format_number(value: float, percent: bool = False) -> str:
    """At least three digits; whole numbers from 1,000 on, and powers of ten from 1e15 on."""
    if percent:
        return f"{100 * value:.3g}%"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def format_score(value: float) -> str:
    """Three decimals, as scores from 0 to 1 are published."""
    return f"{value:.3f}" if abs(value) < 1000 else format_number(value)


def draw_chart(chart: Chart, curves: Mapping[str, Curve], levels: Mapping[str, float]) -> str:
    """A figure with its legend. `levels`: values drawn as dashed horizontal lines."""
    legend, notes = [], []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        axes.grid(axis="y")
        axes.set_xlim(0, 1.02 * max(1, *(step for steps, _ in curves.values() for step in steps)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        every = np.array([value for _, values in curves.values() for value in values])
        finite = every[_can_draw(every)]
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if chart.logarithmic and len(finite) and finite.min() > 0:
            axes.set_yscale("log", subs=())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: format_number(value, chart.percent))
        for index, (name, (steps, values)) in enumerate(curves.items()):
            colour = COLOURS[index % len(COLOURS)]
            _draw_curve(axes, np.array(steps), np.array(values), colour, chart.smooth)
            legend.append((colour, "solid", name, format_number(values[-1], chart.percent)))
            notes += _mark_bad(axes, name, np.array(steps), np.array(values))
        for index, (name, level) in enumerate(levels.items(), start=len(curves)):
            colour = COLOURS[index % len(COLOURS)]
            if _can_draw(level):
                axes.axhline(level, color=colour, linestyle=(0, (4, 3)), linewidth=1.3)
            legend.append((colour, "dashed", name, format_number(level, chart.percent)))
        drawing = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawing, format="svg", metadata=nothing)
    keys = "".join(
        f'<span><i style="border-top:3px {dash} {colour}"></i>{escape(name)} {value}</span>'
        for colour, dash, name, value in legend
    )
    warnings = "".join(f'<span class="bad">{escape(note)}</span>' for note in notes)
    title = escape(chart.title)
    return (
        f"<figure><figcaption><b>{title}</b>{keys}{warnings}</figcaption>"
        f"{_to_inline(drawing.getvalue(), title)}</figure>"
    )


def _draw_curve(
    axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, smooth: bool
) -> None:
    """Draws the means of at most POINTS equal stretches of the curve.

    Where there are many and `smooth` is set, they are faint, and a running mean is drawn over them.
    """
    stretches = np.array_split(np.arange(len(steps)), min(len(steps), POINTS))
    xs = [steps[stretch].mean() for stretch in stretches]
    ys = [_mean(values[stretch]) for stretch in stretches]
    if smooth and len(ys) >= 40:
        axes.plot(xs, ys, color=colour, alpha=0.3, linewidth=0.9)
        reach = len(ys) // 40
        ys = [_mean(np.array(ys[max(i - reach, 0) : i + reach + 1])) for i in range(len(ys))]
    axes.plot(xs, ys, color=colour, linewidth=1.7, marker="o" if len(ys) < 20 else "", markersize=4)


def _mark_bad(axes: Any, name: str, steps: np.ndarray, values: np.ndarray) -> list[str]:
    """Marks the steps whose values are not drawn. Returns lines that count them."""
    notes = []
    for why, is_bad in (
        ("not finite", ~np.isfinite(values)),
        (f"above {LARGEST:g}", np.isfinite(values) & ~_can_draw(values)),
    ):
        if len(bad := steps[is_bad]):
            marks = bad[:: math.ceil(len(bad) / POINTS)]
            across = axes.get_xaxis_transform()
            axes.plot(marks, [0.02] * len(marks), "|", color="#e11d48", transform=across)
            notes.append(f"{name}: {len(bad)} {why}, first at step {bad[0]:,.0f}")
    return notes


def _can_draw(values: Any) -> Any:
    """Of one value or of an array of values."""
    return np.isfinite(values) & (np.abs(values) < LARGEST)


def _mean(values: np.ndarray) -> float:
    """The mean of what is drawn. Where there is nothing: NaN, which leaves a gap in a curve."""
    finite = values[_can_draw(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _to_inline(drawing: str, title: str) -> str:
    """Turns an SVG file into an element of a page, with the page's text colour.

    Ids that would repeat on a page with several drawings are removed.
    """
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r' id="[a-z0-9]+_\d+"', "", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
