"""A run folder to one HTML page: key numbers, curves, scores, example searches, configuration.

In: `experiment.json`, `metrics.jsonl`, `evals.jsonl`; `summary.json` once a run has ended;
`suites.json` once it has been evaluated on data.
Out: `report.html`, which loads nothing and runs nothing, and is the same for the same files.
It knows no model and no device, and shows what there is: a run that was killed has a report too.

    python -m jaxcpt.report --run-dir runs/quickstart
"""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.charts import Chart, draw_chart, show
from jaxcpt.errors import UserError, run_command
from jaxcpt.evals.table import WORDS
from jaxcpt.files import write_file
from jaxcpt.metrics import EVALS_FILE, METRICS_FILE, Row, read_rows

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
"""The order of the page. Scalars that are not named here get a chart each, at the end."""


def write_report(run_dir: Path) -> Path:
    """Writes report.html into the run folder and returns its path.

    Raises UserError if the folder is none of a run, or if a file in it does not parse.
    """
    experiment = _read_json(run_dir / "experiment.json")
    if experiment is None:
        raise UserError(
            f"{run_dir}: not a run folder: it has no experiment.json; "
            "give the folder that jaxcpt.train wrote"
        )
    summary = _read_json(run_dir / "summary.json") or {}
    rows = read_rows(run_dir / METRICS_FILE)
    evals = read_rows(run_dir / EVALS_FILE)
    table = summary.get("table", [])
    sections = {
        "Held-out search": _draw_table(table) + _grid(_draw_evals(evals, table)),
        "The paper's suites": _list_suites(_read_json(run_dir / "suites.json") or {}),
        "Training": _grid(_draw_metrics(rows)),
        "Example searches": _list_examples(summary.get("examples", [])),
        "Derived numbers": _draw_tree(summary.get("derived", {})),
        "Configuration": _draw_tree(experiment),
    }
    body = "".join(f"<h2>{title}</h2>\n{html}\n" for title, html in sections.items() if html)
    name = escape(str(experiment.get("name", run_dir.name)))
    page = PAGE.format(
        name=name, style=CSS, header=_draw_header(experiment, rows, evals), body=body
    )
    path = run_dir / "report.html"
    write_file(path, page)
    return path


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON: {error}; put back the file that jaxcpt.train wrote"
        ) from error


def _label(name: str) -> str:
    """heldout/recall_at_10 -> heldout recall@10, pairs_per_s -> pairs/s"""
    for old, new in ("/", " "), ("_at_", "@"), ("_per_", "/"), ("_", " "):
        name = name.replace(old, new)
    for word in ("MRR", "MAP", "nDCG"):
        name = re.sub(rf"\b{word.lower()}\b", word, name)
    return name


def _draw_header(experiment: Mapping[str, Any], rows: Sequence[Row], evals: Sequence[Row]) -> str:
    """How far the run got, and its key numbers."""
    if not rows:
        return "<p>No step has been logged yet.</p>"
    step, total = int(rows[-1]["step"]), experiment.get("train_steps", 0)
    state = "Finished" if step >= total else "Stopped or still running"
    numbers: dict[str, str] = {f"of {total:,} steps": f"{step:,}"}
    for row in evals:
        numbers |= {_label(k): f"{v:.3f}" for k, v in row.items() if k.startswith("heldout/")}
    last = rows[-1]
    if "loss" in last:
        numbers["loss"] = show(last["loss"])
    if accuracies := [last[name] for name in ACCURACIES if name in last]:
        numbers["in-batch accuracy"] = show(sum(accuracies) / len(accuracies), percent=True)
    # The median, since the first window of a run holds the compilation.
    for name in ("pairs_per_s", "tokens_per_s"):
        if values := [row[name] for row in rows if name in row]:
            numbers[f"{_label(name)}, median"] = show(float(np.median(values)))
    if values := [row["padding"] for row in rows if "padding" in row]:
        numbers["padding, mean"] = show(float(np.mean(values)), percent=True)
    cards = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"
        for name, value in numbers.items()
    )
    return f'<p>{state} at step {step:,}.</p>\n<div class="cards">{cards}</div>'


def _draw_metrics(rows: Sequence[Row]) -> list[str]:
    seen = {name: None for row in rows for name in row if name != "step"}
    named = {name for chart in CHARTS for name in chart.names}
    others = [Chart(_label(name), (name,)) for name in seen if name not in named]
    figures = []
    for chart in (*CHARTS, *others):
        having = {n: [row for row in rows if n in row] for n in chart.names if n in seen}
        curves = {
            _label(name): ([row["step"] for row in those], [row[name] for row in those])
            for name, those in having.items()
        }
        if curves:
            figures.append(draw_chart(chart, curves, {}))
    return figures


def _draw_evals(evals: Sequence[Row], table: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart for each score, with a curve for each data set; lines for the table's other rows."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in evals:
        for name, value in row.items():
            data, _, score = name.rpartition("/")
            if name != "step":
                steps, values = curves.setdefault(score, {}).setdefault(data, ([], []))
                steps.append(row["step"])
                values.append(value)
    figures = []
    for score, of_data in curves.items():
        # A suite that was run once stands in its table; a curve of one point says no more.
        if "heldout" not in of_data and all(len(steps) < 2 for steps, _ in of_data.values()):
            continue
        levels = {}
        if "heldout" in of_data:
            others = [row for row in table if row.get("name") != "this run" and score in row]
            levels = {str(row["name"]): float(row[score]) for row in others}
        # The baseline's own scores stand among the table's rows, and single points in the suites'.
        shown = {
            k: v
            for k, v in of_data.items()
            if k == "heldout" or (len(v[0]) > 1 and not (levels and k == "baseline"))
        }
        figures.append(draw_chart(Chart(_label(score), (), smooth=False), shown, levels))
    return figures


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _draw_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a name and scores; the best of each column in bold."""
    if not table:
        return ""
    names = list(dict.fromkeys(name for row in table for name in row if name != "name"))
    best = {n: max((float(row[n]) for row in table if n in row), default=0.0) for n in names}
    lines = []
    for row in table:
        cells = [f"<th>{escape(str(row.get('name', '')))}</th>"]
        for name in names:
            value = float(row[name]) if name in row else math.nan
            mark = ' class="best"' if value == best[name] else ""
            cells.append(f"<td{mark}>{value:.3f}</td>" if name in row else "<td>-</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(_label(name))}</th>" for name in names)
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _list_suites(found: Mapping[str, Any]) -> str:
    """A table for each suite: our scores, of words alone, published; and what bars a comparison."""
    parts = []
    for suite, words in WORDS.items():
        if not (lines := found.get("suites", {}).get(suite)):
            continue
        published = any(line["published"] for line in lines)
        rows = ""
        for line in lines:
            folder, _, score = line["name"].rpartition("/")  # names of sets stay as they are
            star = "*" if line["caveat"] else ""
            name = f"{folder} {_label(score)}{star}" if folder else f"{score}{star}"
            of_words = "-" if line["words"] is None else f"{line['words']:.3f}"
            rows += f"<tr><th>{escape(name)}</th><td>{line['score']:.3f}</td><td>{of_words}</td>"
            rows += f'<td class="text">{escape(line["published"])}</td>' * published + "</tr>"
        head = f"<tr><th></th><th>this run</th><th>{words}</th>"
        head += '<th class="text">published</th>' * published + "</tr>"
        caveats = dict.fromkeys(line["caveat"] for line in lines if line["caveat"])
        notes = "".join(f"<p>* Not to be compared: {escape(caveat)}.</p>" for caveat in caveats)
        title = f"<h3>{escape(_label(suite))}, step {found['step']:,}</h3>"
        parts.append(f"<div>{title}<table>{head}{rows}</table>{notes}</div>")
    return f'<div class="suites">{"".join(parts)}</div>' if parts else ""


def _list_examples(examples: Sequence[Mapping[str, Any]]) -> str:
    """Each query with the texts found; the first one is open."""
    parts = []
    for example in examples:
        parts.append(f"<h3>{escape(str(example['query']))}</h3>")
        for rank, result in enumerate(example["results"], start=1):
            right = ' <em class="right">✓ right</em>' if result.get("right") else ""
            parts.append(
                f"<details{' open' if rank == 1 else ''}><summary>{rank}. "
                f"<code>{escape(str(result.get('source', '')))}</code> "
                f"<span>{result['score']:.3f}</span>{right}</summary>"
                f"<pre>{escape(str(result['text']))}</pre></details>"
            )
    return "".join(parts)


def _draw_tree(value: Mapping[str, Any]) -> str:
    """Nested objects and lists as nested lists of names and values."""
    leaves, branches = [], []
    for name, item in value.items():
        if isinstance(item, list) and any(isinstance(entry, dict) for entry in item):
            item = {str(index): entry for index, entry in enumerate(item)}
        if isinstance(item, dict):
            kind = escape(str(item.get("type", "")))
            head = f"<summary>{escape(name)} <span>{kind}</span></summary>"
            branches.append(f"<details open>{head}{_draw_tree(item)}</details>")
        elif name != "type":
            text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
            leaves.append(f"<dt>{escape(name)}</dt><dd>{escape(text) or '-'}</dd>")
    listed = f"<dl>{''.join(leaves)}</dl>" if leaves else ""
    return f'{listed}<div class="tree">{"".join(branches)}</div>' if branches else listed


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name} · jaxcpt</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head>
<body><h1>{name}</h1>
{header}
{body}</body></html>
"""

CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5d6878;
  --line: #dfe3e9; --right: #0b7a55; --bad: #c81e45; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1d2229; --ink: #e4e8ee;
  --soft: #9aa5b4; --line: #313843; --right: #4cc79a; --bad: #ff7d98; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 80rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.8rem; } h1 + p { margin: 0 0 1rem; color: var(--soft); }
h2 { margin: 2.5rem 0 .8rem; font-size: 1.25rem; } h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
.cards, .charts { display: grid; gap: .8rem; }
.cards { grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); }
.suites { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
.suites div { max-width: 32rem; } .suites h3 { margin-top: 0; } .suites p { margin: 0 0 1.5rem; }
.suites th, .suites td { white-space: nowrap; } .suites td.text { white-space: normal; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.cards div, figure, table, details, dl { background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
.cards div { padding: .6rem .8rem; } .cards b { display: block; font-size: 1.25rem; }
.cards span, summary span, dt { color: var(--soft); font-size: .85rem; }
figure { margin: 0; padding: .7rem .7rem .3rem; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; margin-bottom: .4rem;
  font-size: .85rem; }
figcaption b { width: 100%; font-size: .95rem; }
figcaption i { display: inline-block; width: 1.1rem; margin-right: .35rem; vertical-align: middle; }
.bad { color: var(--bad); } .right { color: var(--right); font-style: normal; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
table { display: block; width: fit-content; max-width: 100%; overflow-x: auto; border-spacing: 0;
  margin-bottom: .8rem; }
th, td { padding: .4rem .55rem; text-align: right; }
tr + tr > * { border-top: 1px solid var(--line); }
th { font-weight: 500; } th:first-child { text-align: left; } .best { font-weight: 700; }
.text { text-align: left; }
td, .cards b, figcaption { font-variant-numeric: tabular-nums; }
details { margin-bottom: .5rem; padding: .4rem .8rem; break-inside: avoid; }
details details, details dl { margin: 0; border: 0; padding: 0 0 0 .8rem; background: none; }
summary { cursor: pointer; font-size: .9rem; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; }
pre { margin: .5rem 0; padding-top: .5rem; border-top: 1px solid var(--line); overflow: auto;
  max-height: 26rem; tab-size: 4; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 0 .8rem;
  padding: .6rem .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.tree { columns: 24rem; column-gap: .8rem; } .tree .tree { columns: auto; }
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxcpt report", description="Writes report.html for a run folder."
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of a training run")
    print(write_report(parser.parse_args(argv).run_dir))


if __name__ == "__main__":
    run_command(main)
