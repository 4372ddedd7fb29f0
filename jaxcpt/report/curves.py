"""Which charts the page has: rows of numbers in, one figure for each chart out."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxcpt.metrics import Row
from jaxcpt.report.charts import Chart, Curve, draw_chart
from jaxcpt.report.sections import make_label

ACCURACIES = ("accuracy_x_to_y", "accuracy_y_to_x")
CHARTS = (
    Chart("Loss", ("loss",)),
    Chart("In-batch accuracy", ACCURACIES, percent=True),
    Chart("In-batch MRR", ("mrr",)),
    Chart("Scale (1 / temperature)", ("scale",), smooth=False),
    Chart("Learning rate", ("learning_rate",), smooth=False),
    Chart("Gradient norm", ("gradient_norm",), logarithmic=True),
    Chart("Pairs per second", ("pairs_per_s",)),
    Chart("Tokens per second", ("tokens_per_s",)),
    Chart("Padding and waiting for data", ("padding", "data_wait"), percent=True),
    Chart("Share of peak FLOP/s", ("mfu",), percent=True),
    Chart("Alignment", ("alignment",)),
    Chart("Uniformity", ("uniformity",)),
    Chart("Embedding length before normalising", ("zx_norm", "zy_norm")),
    Chart("Pairs masked", ("masked_duplicates", "masked_overflow")),
)
"""In the order of the page. Scalars that are not named here follow, with one chart each."""


def draw_metrics(rows: Sequence[Row]) -> list[str]:
    """A figure for each chart that has at least one of its scalars in the rows of training."""
    seen = {name: None for row in rows for name in row if name != "step"}
    named = {name for chart in CHARTS for name in chart.names}
    of_sources = tuple(name for name in seen if name.startswith("padding/"))
    named |= set(of_sources)
    others = [Chart("Padding by source", of_sources, percent=True)]
    others += [Chart(make_label(name), (name,)) for name in seen if name not in named]
    figures = []
    for chart in (*CHARTS, *others):
        rows_with = {n: [row for row in rows if n in row] for n in chart.names if n in seen}
        curves = {
            make_label(name): ([row["step"] for row in those], [row[name] for row in those])
            for name, those in rows_with.items()
        }
        if curves:
            figures.append(draw_chart(chart, curves, {}))
    return figures


def draw_evals(evals: Sequence[Row], table: Sequence[Mapping[str, Any]]) -> list[str]:
    """A figure for each score, such as mrr, with a curve for each data set.

    table: the final held-out scores by searcher. Its searchers other than this run become
    horizontal lines in the figures of held-out scores.
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
        # A baseline that is a level already needs no curve.
        shown = {
            name: curve
            for name, curve in curves.items()
            if name == "heldout" or (len(curve[0]) > 1 and not (levels and name == "baseline"))
        }
        figures.append(draw_chart(Chart(make_label(score), (), smooth=False), shown, levels))
    return figures


def _collect_curves(evals: Sequence[Row]) -> dict[str, dict[str, Curve]]:
    """By score, then by data set: rows have scores under `<data set>/<score>`."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in evals:
        for name, value in row.items():
            data, _, score = name.rpartition("/")
            if name != "step":
                steps, values = curves.setdefault(score, {}).setdefault(data, ([], []))
                steps.append(row["step"])
                values.append(value)
    return {score: dict(of_data) for score, of_data in curves.items()}
