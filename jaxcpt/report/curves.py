"""Chooses the charts of the page.

In: rows of numbers. Out: one figure for each chart. The module does not know how a chart is drawn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from jaxcpt.report.charts import Chart, Curve, arrange, draw_chart
from jaxcpt.report.meanings import explain
from jaxcpt.report.sections import make_label
from jaxcpt.rows import Row

ACCURACIES = ("accuracy_x_to_y", "accuracy_y_to_x")
CHARTS = (
    Chart("Loss", ("loss",), "nats"),
    Chart("In-batch accuracy", ACCURACIES, "share of texts", percent=True),
    Chart("In-batch MRR", ("mrr",), "MRR"),
    Chart("Scale (1 / temperature)", ("scale",), "factor", smooth=False),
    Chart("Learning rate", ("learning_rate",), "rate", smooth=False),
    Chart("Gradient norm", ("gradient_norm",), "length", logarithmic=True),
    Chart("Pairs per second", ("pairs_per_s",), "pairs/s", has_outliers=True),
    Chart("Tokens per second", ("tokens_per_s",), "tokens/s", has_outliers=True),
    Chart("Padding and waiting for data", ("padding", "data_wait"), "share", percent=True),
    Chart("Saving and evaluating", ("save_share", "eval_share"), "share", percent=True),
    Chart("Share of peak FLOP/s", ("mfu",), "share", percent=True, has_outliers=True),
    Chart("Alignment", ("alignment",), "squared distance"),
    Chart("Uniformity", ("uniformity",), "log"),
    Chart("Embedding length before normalising", ("zx_norm", "zy_norm"), "length"),
    Chart("Left out of the loss", ("masked_duplicates", "masked_overflow"), "count"),
)
"""The charts in the order of the page. Other scalars follow, with one chart each."""


def list_charts(rows: Iterable[Row], is_generative: bool) -> list[Chart]:
    """The charts with at least one of their scalars in the rows, with explanations."""
    seen = {name: None for row in rows for name in row if name != "step"}
    named = {name for chart in CHARTS for name in chart.names}
    of_sources = tuple(name for name in seen if name.startswith("padding/"))
    named |= set(of_sources)
    meaning = "Share of the computed tokens of each source that are padding."
    others = [Chart("Padding by source", of_sources, "share", percent=True, meaning=meaning)]
    others += [Chart(make_label(n), (n,), make_label(n)) for n in seen if n not in named]
    charts = []
    for chart in (*CHARTS, *others):
        names = tuple(name for name in chart.names if name in seen)
        meanings = {name: explain(name, is_generative) for name in names}
        if len(names) > 1:
            meanings = {n: f"{make_label(n)}: {text}" for n, text in meanings.items() if text}
        if names:
            meaning = " ".join(meanings.values()).strip() or chart.meaning
            charts.append(replace(chart, names=names, meaning=meaning))
    return charts


def find_curve(rows: Sequence[Row], name: str) -> Curve:
    """The steps and the values of the rows that have the scalar."""
    own = [row for row in rows if name in row]
    return [row["step"] for row in own], [row[name] for row in own]


def draw_metrics(rows: Sequence[Row], is_generative: bool) -> str:
    """A figure for each chart of the training metrics."""

    def draw(chart: Chart) -> str:
        return draw_chart(chart, {make_label(n): find_curve(rows, n) for n in chart.names}, {})

    return draw_unless_zero(list_charts(rows, is_generative), rows, draw)


def draw_unless_zero(
    charts: Iterable[Chart], rows: Sequence[Row], draw: Callable[[Chart], str]
) -> str:
    """The figures of the charts, and a line that names those whose values are 0 in all rows."""
    figures, zero = [], []
    for chart in charts:
        if any(row.get(name) for row in rows for name in chart.names):
            figures.append(draw(chart))
        else:
            zero.append(chart.title)
    line = f"These were 0 at every step, so they have no chart: {'; '.join(zero)}."
    return arrange(figures) + (f"<p>{escape(line)}</p>" if zero else "")


def draw_evals(evals: Sequence[Row], table: Sequence[Mapping[str, Any]]) -> list[str]:
    """A figure for each score, such as mrr, with a curve for each data set.

    table: the final held-out scores of this run and of others, such as BM25. The scores of the
    others become horizontal lines in the figures of held-out scores.
    """
    figures = []
    for score, curves in _collect_curves(evals).items():
        # The table of a suite already shows a single score; a curve needs at least two.
        if "heldout" not in curves and all(len(steps) < 2 for steps, _ in curves.values()):
            continue
        levels = {}
        if "heldout" in curves:
            others = [row for row in table if row.get("name") != "this run" and score in row]
            levels = {str(row["name"]): float(row[score]) for row in others}
        # A baseline that is drawn as a level needs no curve.
        shown = {
            name: curve
            for name, curve in curves.items()
            if name == "heldout" or (len(curve[0]) > 1 and not (levels and name == "baseline"))
        }
        label = make_label(score)
        chart = Chart(label, (), label, smooth=False, meaning=explain(score))
        figures.append(draw_chart(chart, shown, levels))
    return figures


def _collect_curves(evals: Sequence[Row]) -> dict[str, dict[str, Curve]]:
    """The curves by score, then by data set. In rows, a score is named `<data set>/<score>`."""
    curves: dict[str, dict[str, Curve]] = {}
    for name in dict.fromkeys(name for row in evals for name in row if name != "step"):
        data, _, score = name.rpartition("/")
        curves.setdefault(score, {})[data] = find_curve(evals, name)
    return curves
