"""Writes the tables and figures of docs/findings.md from the numbers in docs/findings/.

    python tools/findings_page.py

In: the JSON files of findings.py, and the page with its prose. Out: the same page with new tables
between the markers of their names, and one SVG file for each finding. It runs no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from bench_tables import Table, Value, render, rewrite
from matplotlib.figure import Figure
from plots import COLOURS, STYLE

PAGE = Path(__file__).resolve().parent.parent / "docs" / "findings.md"
NUMBERS = PAGE.with_suffix("")
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


def make_table(name: str, groups: Groups, columns: Mapping[str, str]) -> Table:
    """A column for each part of the choice, and one for each score."""
    rows: list[list[Value]] = []
    for choice, seeds in groups:
        scores = [show([row[key] for row in seeds]) for key in columns.values()]
        rows.append([*choice.values(), len(seeds), *scores])
    return Table(name=name, columns=[*groups[0][0], "seeds", *columns], rows=rows)


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


def make_curve(groups: Groups, place: str, score: str) -> Series:
    """The values of a score, along one part of the choice."""
    return Series(
        [choice[place] for choice, _ in groups],
        [[row[score] for row in rows] for _, rows in groups],
    )


MRR = "heldout/mrr"
SIMILARITY = "sts/sts15/all/spearman"
COSQA, SCIFACT = "code_search/cosqa/mrr", "retrieval/scifact/ndcg_at_10"


def write_start() -> Table:
    columns = {"held-out functions, MRR": MRR, "CoSQA, MRR": COSQA, "SciFact, nDCG@10": SCIFACT}
    return make_table("start", group(read_numbers("start")["rows"]), columns)


def write_batch() -> Table:
    rows = read_numbers("batch")["rows"]
    rows.sort(key=lambda row: (row["choice"]["equal"], row["choice"]["batch"]))
    curves = {
        f"equal {equal}": make_curve(
            group([row for row in rows if row["choice"]["equal"] == equal]), "batch", MRR
        )
        for equal in ("pairs", "steps")
    }
    draw("batch", curves, "pairs in the batch", "held-out MRR", log=True)
    return make_table("batch", group(rows), {"held-out functions, MRR": MRR})


def write_pooling() -> Table:
    return make_table("pooling", group(read_numbers("pooling")["rows"]), {"held-out MRR": MRR})


def write_longer() -> Table:
    groups = group(read_numbers("longer")["rows"], by_step=True)
    columns = {"search: held-out MRR": MRR, "similarity: STS15": SIMILARITY}
    curves = {label: make_curve(groups, "step", name) for label, name in columns.items()}
    draw("longer", curves, "steps of 128 pairs", "score")
    return make_table("longer", groups, columns)


def write_layers() -> Table:
    rows = read_numbers("layers")["rows"]
    for row in rows:
        row["scores"]["before"] = row["by_step"][0][MRR]
    groups = group(rows)
    columns = {"before training, MRR": "before", "after training, MRR": MRR}
    curves = {label: make_curve(groups, "layers", name) for label, name in columns.items()}
    draw("layers", curves, "layers", "held-out MRR")
    return make_table("layers", groups, columns)


def write_negatives() -> Table:
    rows = read_numbers("negatives")["rows"]
    untuned = next(row["by_step"][0] for row in rows if SCIFACT in row["by_step"][0])
    groups = [({"hard negatives of a pair": "not tuned"}, [untuned]), *group(rows)]
    columns = {"SciFact, nDCG@10": SCIFACT, "among the test abstracts, MRR": MRR}
    return make_table("negatives", groups, columns)


TABLES = {
    "start": write_start,
    "batch": write_batch,
    "pooling": write_pooling,
    "longer": write_longer,
    "layers": write_layers,
    "negatives": write_negatives,
}


def put_table(page: str, name: str) -> str:
    """The page with the table that the numbers of a finding make."""
    return rewrite(page, name, f"\n{render(TABLES[name]())}\n")


def main() -> None:
    page = PAGE.read_text()
    for name in TABLES:
        page = put_table(page, name)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
