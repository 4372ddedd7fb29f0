"""A run folder in, `report.html` out: reads the files and joins the sections of the page."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import CommandParser, UserError
from jaxcpt.files import to_path, write_file
from jaxcpt.metrics import EVALS_FILE, METRICS_FILE, Row, read_rows
from jaxcpt.report.charts import format_number, format_score
from jaxcpt.report.curves import ACCURACIES, draw_evals, draw_metrics
from jaxcpt.report.inputs import EXPERIMENT, SUITES, SUMMARY, read_object
from jaxcpt.report.sections import draw_examples, draw_suites, draw_table, draw_tree, make_label

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name} · jaxcpt</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
{style}</style></head>
<body><h1>{name}</h1>
{header}
{body}</body></html>
"""


def write_report(run_dir: Path) -> Path:
    """Writes report.html into the run folder and returns its path.

    Raises UserError if the folder is not a run folder, or if a file in it does not fit.
    """
    experiment = read_object(run_dir / "experiment.json", EXPERIMENT)
    if experiment is None:
        raise UserError(
            f"{run_dir}: not a run folder: it has no experiment.json; "
            "give the folder that jaxcpt.train wrote"
        )
    summary = read_object(run_dir / "summary.json", SUMMARY) or {}
    rows = read_rows(run_dir / METRICS_FILE)
    evals = read_rows(run_dir / EVALS_FILE)
    table = summary.get("table", [])
    is_generative = experiment.get("objective") == "generative"
    held_out = "Held-out texts, token by token" if is_generative else "Held-out search"
    sections = {
        held_out: draw_table(table) + _arrange(draw_evals(evals, table)),
        "The paper's suites": draw_suites(read_object(run_dir / "suites.json", SUITES) or {}),
        "Training": _arrange(draw_metrics(rows)),
        "Example searches": draw_examples(summary.get("examples", [])),
        "Derived numbers": draw_tree(summary.get("derived", {})),
        "Configuration": draw_tree(experiment),
    }
    page = PAGE.format(
        name=escape(str(experiment.get("name", run_dir.name))),
        style=files("jaxcpt.report").joinpath("style.css").read_text(encoding="utf-8"),
        header=_draw_header(experiment, rows, evals),
        body="".join(f"<h2>{title}</h2>\n{html}\n" for title, html in sections.items() if html),
    )
    path = run_dir / "report.html"
    write_file(path, page)
    return path


def _draw_header(experiment: Mapping[str, Any], rows: Sequence[Row], evals: Sequence[Row]) -> str:
    """The step that the run has reached, and a card for each key number."""
    if not rows:
        return "<p>No step has been logged yet.</p>"
    step, total = int(rows[-1]["step"]), experiment.get("train_steps", 0)
    state = "Finished" if step >= total else "Stopped or still running"
    numbers: dict[str, str] = {f"of {total:,} steps": f"{step:,}"}
    for row in evals:
        numbers |= {
            make_label(k): format_score(v) for k, v in row.items() if k.startswith("heldout/")
        }
    last = rows[-1]
    if "loss" in last:
        numbers["loss"] = format_number(last["loss"])
    if accuracies := [last[name] for name in ACCURACIES if name in last]:
        mean = sum(accuracies) / len(accuracies)
        numbers["in-batch accuracy"] = format_number(mean, percent=True)
    # The median, because the first rate of a run includes the compilation.
    for name in ("pairs_per_s", "tokens_per_s"):
        if values := [row[name] for row in rows if name in row]:
            numbers[f"{make_label(name)}, median"] = format_number(float(np.median(values)))
    if values := [row["padding"] for row in rows if "padding" in row]:
        mean = sum(values) / len(values)
        numbers["padding, mean"] = format_number(mean, percent=True)
    cards = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"
        for name, value in numbers.items()
    )
    return f'<p>{state} at step {step:,}.</p>\n<div class="cards">{cards}</div>'


def _arrange(figures: Sequence[str]) -> str:
    """Puts the figures side by side."""
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="jaxcpt report", description="Write report.html for a run folder.")
    parser.add_argument("--run-dir", type=to_path, required=True, help="folder of a training run")
    print(write_report(parser.parse_args(argv).run_dir))
