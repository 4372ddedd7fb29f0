"""Draws the charts of a page.

In: curves. Out: HTML figures, each with an SVG drawing. Only this module imports matplotlib. It
knows no run and no file. The page runs no script. To show values, each drawing is covered by a row
of narrow boxes, and a box shows its values while the pointer is over it.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

LARGEST = 1e100
"""The largest value that is drawn. Larger ones are only counted, because axes would overflow."""
POINTS = 120
"""Most points of a drawn curve. If it has more steps, a point is the mean of several steps."""
FAR, FAR_OF_VALUE = 1.5, 0.1
"""A level is drawn if its distance from the curves is at most FAR times their range, or at most
FAR_OF_VALUE of their values."""
OUTLIERS = 0.05
"""The share of a curve's values that may be below the axis in a chart with outliers."""


@dataclass(frozen=True)
class Chart:
    """One set of axes: its title, the scalars that it shows, and how it shows them."""

    title: str
    names: tuple[str, ...]
    unit: str = ""
    """Name of the vertical axis."""
    percent: bool = False
    logarithmic: bool = False
    smooth: bool = True
    has_outliers: bool = False
    """Whether a few values are far below the others, such as the rate of the first step."""
    meaning: str = ""
    """A line of text below the title."""


COLOURS = ("#3b82f6", "#e8710a", "#12a37a", "#a855f7", "#db2777", "#64748b")
INK = "#010203"  # replaced by the page's text colour, which is light or dark
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxcpt",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
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


class Point(NamedTuple):
    """One point of the horizontal axis, with the means of the curves over neighbouring steps."""

    first: float
    last: float
    means: dict[str, float]
    """The mean of each curve. A curve without a step there is left out. NaN: nothing to draw."""

    @property
    def middle(self) -> float:
        return (self.first + self.last) / 2


class Range(NamedTuple):
    """The range of the vertical axis."""

    low: float
    high: float
    is_logarithmic: bool = False


def format_number(value: float, percent: bool = False, digits: int = 4) -> str:
    """A number with at least three digits. Large ones are whole, or powers of ten from 1e15 on.

    digits: most digits of a number that is neither large nor a percentage.
    """
    if percent:
        return f"{100 * value:.3g}%"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.{digits}g}"


def format_score(value: float) -> str:
    """A score with three decimals, as usual for scores from 0 to 1."""
    return f"{value:.3f}" if abs(value) < 1000 else format_number(value)


def draw_chart(chart: Chart, curves: Mapping[str, Curve], levels: Mapping[str, float]) -> str:
    """A figure with its legend. levels: values that are drawn as dashed horizontal lines."""
    arrays = {name: (np.array(xs), np.array(ys)) for name, (xs, ys) in curves.items()}
    points = _gather(arrays)
    reach = _choose_range(chart, arrays, levels)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate([*curves, *levels])}
    legend, missing = [], ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = _make_axes(figure, chart, max(1.0, points[-1].last), reach)
        for name, (steps, values) in arrays.items():
            _draw_curve(axes, name, points, colours[name], chart.smooth)
            missing += _mark_missing(axes, name, steps, values, reach)
            legend.append((name, "solid", format_number(float(values[-1]), chart.percent)))
        for name, level in levels.items():
            value = format_number(level, chart.percent)
            if reach.low <= level <= reach.high:
                axes.axhline(level, color=colours[name], linestyle=(0, (4, 3)), linewidth=1.3)
            else:
                value += " (off the axis)"
            legend.append((name, "dashed", value))
        drawing = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawing, format="svg", metadata=nothing)
        boxes = _draw_boxes(axes, points, chart.percent, colours)
    keys = "".join(
        f'<span><i style="border-top:3px {dash} {colours[name]}"></i>{escape(name)} {value}</span>'
        for name, dash, value in legend
    )
    meaning = f"<p>{escape(chart.meaning)}</p>" if chart.meaning else ""
    title = escape(chart.title)
    return (
        f"<figure><figcaption><b>{title}</b>{meaning}{keys}{missing}</figcaption>"
        f'<div class="plot">{_to_inline(drawing.getvalue(), title)}{boxes}</div></figure>'
    )


def arrange(figures: Sequence[str]) -> str:
    """Puts the figures side by side."""
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _make_axes(figure: Figure, chart: Chart, last: float, reach: Range) -> Any:
    """Makes the axes, from step 0 to `last` and over the range `reach`, with names and ticks."""
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.grid(axis="y")
    axes.set_xlim(-0.02 * last, 1.02 * last)  # show a point at step 0 completely
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_ylabel(chart.unit)
    if reach.is_logarithmic:
        axes.set_yscale("log", subs=())
    axes.set_ylim(reach.low, reach.high)
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5)) if reach.is_logarithmic else MaxNLocator(5)
    )
    largest, between = max(abs(reach.low), abs(reach.high)), (reach.high - reach.low) / 5
    digits = max(4, 2 + math.ceil(math.log10(largest / between)))  # so that ticks differ
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_number(value, chart.percent, digits))
    )
    return axes


def _gather(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[Point]:
    """At most POINTS points over the steps of all curves, in order."""
    every = np.unique(np.concatenate([steps for steps, _ in arrays.values()]))
    points = []
    for stretch in np.array_split(every, min(len(every), POINTS)):
        first, last = stretch[0], stretch[-1]
        means = {}
        for name, (steps, values) in arrays.items():
            inside = values[(first <= steps) & (steps <= last)]
            if len(inside):
                means[name] = _mean(inside)
        points.append(Point(float(first), float(last), means))
    return points


def _choose_range(
    chart: Chart,
    arrays: Mapping[str, tuple[np.ndarray, np.ndarray]],
    levels: Mapping[str, float],
) -> Range:
    """The range from the least to the greatest value of the curves, with a margin.

    Levels near the curves are included. The axis is logarithmic if the chart says so and if the
    values differ at least by a factor of ten.
    """
    values = np.concatenate([values for _, values in arrays.values()])
    values = values[_can_draw(values)]
    if not len(values):
        return Range(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if chart.has_outliers:
        low = min(_find_usual_low(own) for _, own in arrays.values())
    far = max(FAR * (high - low), FAR_OF_VALUE * abs(high))
    near = [v for v in levels.values() if _can_draw(v) and low - far <= v <= high + far]
    low, high = min([low, *near]), max([high, *near])
    if chart.logarithmic and 0 < 10 * low <= high:
        return Range(low / 1.1, high * 1.1, is_logarithmic=True)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return Range(0.0 if 0 <= low < margin else low - margin, high + margin)


def _find_usual_low(values: np.ndarray) -> float:
    """The least value of a curve without its outliers. A short curve has no outliers."""
    values = values[_can_draw(values)]
    if not len(values):
        return math.inf
    return float(np.quantile(values, OUTLIERS) if len(values) >= 10 else values.min())


def _draw_curve(axes: Any, name: str, points: Sequence[Point], colour: str, smooth: bool) -> None:
    """Draws a curve. With `smooth`, many points are faint, and their running mean is drawn too."""
    own = [point for point in points if name in point.means]
    xs, ys = [point.middle for point in own], [point.means[name] for point in own]
    if smooth and len(ys) >= 40:
        axes.plot(xs, ys, color=colour, alpha=0.3, linewidth=0.9)
        reach = len(ys) // 40
        ys = [_mean(np.array(ys[max(i - reach, 0) : i + reach + 1])) for i in range(len(ys))]
    axes.plot(xs, ys, color=colour, linewidth=1.7, marker="o" if len(ys) < 20 else "", markersize=4)


def _mark_missing(axes: Any, name: str, steps: np.ndarray, values: np.ndarray, reach: Range) -> str:
    """Marks the steps whose values are not drawn. Returns the lines that count them."""
    lines = ""
    across, can_draw = axes.get_xaxis_transform(), _can_draw(values)
    for why, is_missing, kind in (
        ("not finite", ~np.isfinite(values), "bad"),
        (f"above {LARGEST:g}", np.isfinite(values) & ~can_draw, "bad"),
        ("below the axis", can_draw & (values < reach.low), "outside"),
    ):
        if len(missing := steps[is_missing]):
            marks = missing[:: math.ceil(len(missing) / POINTS)]
            colour = "#e11d48" if kind == "bad" else INK
            axes.plot(marks, [0.02] * len(marks), "|", color=colour, transform=across)
            line = f"{name}: {len(missing)} {why}, first at step {missing[0]:,.0f}"
            lines += f'<span class="{kind}">{escape(line)}</span>'
    return lines


def _draw_boxes(
    axes: Any, points: Sequence[Point], percent: bool, colours: Mapping[str, str]
) -> str:
    """A box for each point, which ends half way to the points before and after it.

    Call it after the figure is saved, because saving computes its layout.
    """
    area, (start, end) = axes.get_position(), axes.get_xlim()
    middles = [point.middle for point in points]
    edges = [start, *((a + b) / 2 for a, b in pairwise(middles)), end]
    boxes = []
    for point, left, right in zip(points, edges[:-1], edges[1:], strict=True):
        place = 100 * (area.x0 + area.width * (left - start) / (end - start))
        width = 100 * area.width * (right - left) / (end - start)
        steps = f"step {point.first:,.0f}"
        if point.last > point.first:
            steps = f"steps {point.first:,.0f} to {point.last:,.0f}, mean"
        values = "".join(
            f'<br/><u style="color:{colours[name]}">{format_number(mean, percent)}</u>'
            f"{'' if len(colours) == 1 else ' ' + escape(name)}"
            for name, mean in point.means.items()
        )
        inside = 100 * (point.middle - left) / (right - left)
        side = ' class="r"' if place + width * inside / 100 > 50 else ""
        style = f"left:{place:.2f}%;width:{width:.2f}%;--at:{inside:.0f}%"
        boxes.append(f'<i{side} style="{style}"><b>{steps}{values}</b></i>')
    return "".join(boxes)


def _can_draw(values: Any) -> Any:
    """Whether a value can be drawn. values: one value or an array."""
    return np.isfinite(values) & (np.abs(values) < LARGEST)


def _mean(values: np.ndarray) -> float:
    """The mean of the values that can be drawn; NaN, a gap in the curve, if there are none."""
    finite = values[_can_draw(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _to_inline(drawing: str, title: str) -> str:
    """Turns an SVG file into an element of a page, with the page's text colour.

    Ids are removed, because they would repeat on a page with several drawings.
    """
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r' id="[a-z0-9]+_\d+"', "", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
