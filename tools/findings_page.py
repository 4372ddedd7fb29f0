"""Writes the tables and figures of docs/findings.md from the numbers in docs/findings/.

    python tools/findings_page.py

In: the JSON files of findings.py, and the page with its prose. Out: the same page with new tables
between its `<!-- table: NAME -->` lines, and one SVG file for each finding. It runs no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

PAGE = Path(__file__).resolve().parent.parent / "docs" / "findings.md"
NUMBERS = PAGE.with_suffix("")
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

Row = Mapping[str, Any]
Groups = Sequence[tuple[dict[str, Any], Sequence[Row]]]
"""Choices, each with the scores of its seeds."""


@dataclass(frozen=True)
class Series:
    """A curve of a figure: one value for each seed at each place."""

    places: Sequence[float | str]
    values: Sequence[Sequence[float]]


def read_numbers(name: str) -> dict[str, Any]:
    return json.loads((NUMBERS / f"{name}.json").read_text())


def group(rows: Sequence[Row], by_step: bool = False) -> Groups:
    """The scores of rows with the same choice, one for each seed, in the order of the file.

    by_step: each step of an evaluation is a choice of its own.
    """
    groups: dict[str, tuple[dict[str, Any], list[Row]]] = {}
    for row in rows:
        scored = row["by_step"] if by_step else [row["scores"]]
        for scores in scored:
            choice = row["choice"] | ({"step": scores["step"]} if by_step else {})
            groups.setdefault(json.dumps(choice), (choice, []))[1].append(scores)
    return list(groups.values())


def show(values: Sequence[float]) -> str:
    """The mean, and the lowest and the highest of several seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def make_table(groups: Groups, columns: Mapping[str, str]) -> str:
    """A table in Markdown: a column for each part of the choice, and one for each score."""
    keys = list(groups[0][0])
    head = [*keys, "seeds", *columns]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for choice, seeds in groups:
        cells = [
            f"{choice[key]:,}" if isinstance(choice[key], int) else choice[key] for key in keys
        ]
        scores = [show([row[name] for row in seeds]) for name in columns.values()]
        lines.append(" | ".join([*cells, str(len(seeds)), *scores]))
    return "\n".join(f"| {line} |" for line in lines)


def draw(name: str, series: Mapping[str, Series], across: str, up: str, log: bool = False) -> None:
    """An SVG file: a line through the means, and a dot for each seed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, axis="y")
        for colour, (label, curve) in zip(COLOURS, series.items(), strict=False):
            means = [fmean(values) for values in curve.values]
            axes.plot(curve.places, means, color=colour, label=label)
            for place, values in zip(curve.places, curve.values, strict=True):
                axes.plot([place] * len(values), values, "o", color=colour, markersize=3)
        if log:
            places = sorted({float(place) for curve in series.values() for place in curve.places})
            axes.set_xscale("log", base=2)
            axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.set(xlabel=across, ylabel=up)
        axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(frameon=False)
        figure.savefig(NUMBERS / f"{name}.svg", transparent=True, metadata={"Date": None})


def split(groups: Groups, by: str, place: str, score: str) -> dict[str, Series]:
    """The curves of a figure: one for each value of `by`, along `place`."""
    curves: dict[str, Series] = {}
    for value in dict.fromkeys(choice[by] for choice, _ in groups):
        own = [(choice, rows) for choice, rows in groups if choice[by] == value]
        own.sort(key=lambda group: str(group[0][place]).zfill(9))
        curves[f"{by} {value}"] = Series(
            [choice[place] for choice, _ in own],
            [[row[score] for row in rows] for _, rows in own],
        )
    return curves


MRR = "heldout/mrr"
SIMILARITY = "sts/sts15/all/spearman"
COSQA, SCIFACT = "code_search/cosqa/mrr", "retrieval/scifact/ndcg_at_10"


def write_start() -> str:
    groups = group(read_numbers("start")["rows"])
    columns = {"held-out functions, MRR": MRR, "CoSQA, MRR": COSQA, "SciFact, nDCG@10": SCIFACT}
    return make_table(groups, columns)


def write_batch() -> str:
    groups = group(read_numbers("batch")["rows"])
    groups = sorted(groups, key=lambda group: (group[0]["equal"], group[0]["batch"]))
    draw("batch", split(groups, "equal", "batch", MRR), "pairs in the batch", "held-out MRR", True)
    return make_table(groups, {"held-out functions, MRR": MRR})


def write_longer() -> str:
    groups = group(read_numbers("longer")["rows"], by_step=True)
    steps = [choice["step"] for choice, _ in groups]
    curves = {
        label: Series(steps, [[row[name] for row in rows] for _, rows in groups])
        for label, name in (("search: held-out MRR", MRR), ("similarity: STS15", SIMILARITY))
    }
    draw("longer", curves, "steps of 128 pairs", "score")
    return make_table(groups, {"search: held-out MRR": MRR, "similarity: STS15": SIMILARITY})


def write_layers() -> str:
    rows = read_numbers("layers")["rows"]
    ends = group(rows)
    starts = [(choice, [row]) for choice, (row, *_) in group([first_step(row) for row in rows])]
    places = [choice["layers"] for choice, _ in ends]
    curves = {
        label: Series(places, [[row[MRR] for row in seeds] for _, seeds in groups])
        for label, groups in (("after training", ends), ("before training", starts))
    }
    draw("layers", curves, "layers", "held-out MRR")
    both = [
        (choice, [{"before": start[0][MRR], MRR: row[MRR]} for row in seeds])
        for (choice, seeds), (_, start) in zip(ends, starts, strict=True)
    ]
    return make_table(both, {"before training, MRR": "before", "after training, MRR": MRR})


def first_step(row: Row) -> Row:
    return {**row, "scores": row["by_step"][0]}


TABLES = {
    "start": write_start,
    "batch": write_batch,
    "longer": write_longer,
    "layers": write_layers,
}


def put_table(page: str, name: str, table: str) -> str:
    """The page with a new table between the two lines that mark its place."""
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"{PAGE.name} has no place for the table {name}"
    return f"{before}{begin}\n{table}\n\n{end}{after}"


def main() -> None:
    page = PAGE.read_text()
    for name, write in TABLES.items():
        page = put_table(page, name, write())
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
