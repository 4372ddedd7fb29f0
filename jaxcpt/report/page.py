"""Writes `report.html` by joining the sections of the page.

In: a run folder. Out: the page. The module does not know how a section is made.
"""

import os
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from jaxcpt.files import write_file
from jaxcpt.report.about import (
    describe_run,
    draw_files,
    draw_history,
    draw_pairs,
    draw_purpose,
    draw_use,
)
from jaxcpt.report.charts import arrange, format_number, format_score
from jaxcpt.report.curves import ACCURACIES, draw_evals, draw_metrics
from jaxcpt.report.inputs import Run, read_run
from jaxcpt.report.sections import (
    draw_examples,
    draw_list,
    draw_meanings,
    draw_searches,
    draw_settings,
    draw_suites,
    draw_table,
    make_label,
)
from jaxcpt.report.settings import list_settings

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


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Writes the page of a run and returns its path.

    output: the file to write; None: report.html in the run folder. Raises UserError if the folder
    is not a run folder, or if a file in it does not fit.
    """
    run = read_run(run_dir)
    path = output or run_dir / "report.html"
    held_out = "Held-out texts, token by token" if run.is_generative else "Held-out search"
    table = run.summary.get("table", [])
    derived = [(name, str(value)) for name, value in run.summary.get("derived", {}).items()]
    sections = {
        held_out: draw_searches(run.summary)
        + draw_table(table)
        + draw_meanings(name for row in table for name in row)
        + arrange(draw_evals(run.evals, table)),
        "Test sets": draw_suites(run.suites),
        "Example searches": draw_examples(run.summary.get("examples", [])),
        "What it is for": draw_purpose(run),
        "How to use it": draw_use(run),
        "Settings": draw_settings(list(list_settings(run.experiment))),
        "The pairs": draw_pairs(run),
        "Training": draw_metrics(run.rows, run.is_generative),
        "How it was made": draw_history(run),
        "Derived numbers": draw_list(derived),
        "Files": draw_files(run, _lead_to(path, run_dir)),
    }
    write_file(path, fill_page(run.name, _draw_header(run), sections))
    return path


def fill_page(name: str, header: str, sections: Mapping[str, str]) -> str:
    """The whole page. Sections without content are left out."""
    return PAGE.format(
        name=escape(name),
        style=files("jaxcpt.report").joinpath("style.css").read_text(encoding="utf-8"),
        header=header,
        body="".join(f"<h2>{title}</h2>\n{html}\n" for title, html in sections.items() if html),
    )


def _lead_to(page: Path, run_dir: Path) -> str:
    """The first part of links from the page to files of the run."""
    if page.parent == run_dir:
        return ""
    if "://" in str(run_dir) or "://" in str(page):
        return f"{run_dir}/"
    return f"{os.path.relpath(run_dir, page.parent)}/"


def _draw_header(run: Run) -> str:
    """What the run is, the step that it has reached, and a card for each key number."""
    about = escape(describe_run(run))
    total = run.experiment.get("train_steps", 0)
    if not run.rows:
        return f"<p>{about}{' No step has been logged yet.' * bool(total)}</p>"
    step = int(run.rows[-1]["step"])
    state = "Finished" if step >= total else "Stopped or still running"
    numbers: dict[str, str] = {f"of {total:,} steps": f"{step:,}"}
    for row in run.evals:
        numbers |= {
            make_label(k): format_score(v) for k, v in row.items() if k.startswith("heldout/")
        }
    last = run.rows[-1]
    if "loss" in last:
        numbers["loss"] = format_number(last["loss"])
    if accuracies := [last[name] for name in ACCURACIES if name in last]:
        mean = sum(accuracies) / len(accuracies)
        numbers["in-batch accuracy"] = format_number(mean, percent=True)
    # Show the median, because the first step of each start is slower.
    for name in ("pairs_per_s", "tokens_per_s"):
        if values := [row[name] for row in run.rows if name in row]:
            numbers[f"{make_label(name)}, median"] = format_number(float(np.median(values)))
    if values := [row["padding"] for row in run.rows if "padding" in row]:
        mean = sum(values) / len(values)
        numbers["padding, mean"] = format_number(mean, percent=True)
    cards = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"
        for name, value in numbers.items()
    )
    return f'<p>{about} {state} at step {step:,}.</p>\n<div class="cards">{cards}</div>'
