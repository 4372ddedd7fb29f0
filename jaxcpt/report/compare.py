"""Writes one page that compares several runs: different settings, scores and curves.

In: run folders. Out: an HTML page. The module draws with the other modules of this package.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.report.charts import Chart, Curve, arrange, draw_chart
from jaxcpt.report.curves import draw_unless_zero, find_curve, list_charts
from jaxcpt.report.inputs import Run, read_run
from jaxcpt.report.meanings import explain
from jaxcpt.report.page import fill_page
from jaxcpt.report.sections import draw_meanings, draw_table, make_label
from jaxcpt.report.settings import list_settings
from jaxcpt.rows import Row

OF_MODEL = ("name", "train_steps", "objective", "tokenizer.", "model.")
"""How the paths of settings begin that do not only concern training."""


def write_comparison(run_dirs: Sequence[Path], output: Path) -> Path:
    """Writes the page and returns its path. Raises UserError as `read_run` does."""
    runs = dict(zip(name_runs(run_dirs), map(read_run, run_dirs), strict=True))
    sections = {
        "Runs": draw_runs(runs),
        "Last scores": draw_scores(runs),
        "Settings that differ": draw_differences(runs),
        "Scores by step": arrange(draw_eval_curves(runs)),
        "Training": draw_training_curves(runs),
    }
    title = " and ".join(runs) if len(runs) < 3 else f"{len(runs)} runs compared"
    write_file(output, fill_page(title, "", sections))
    return output


def name_runs(run_dirs: Sequence[Path]) -> list[str]:
    """A name for each run: the last parts of its path, as many as are needed to make it unique.

    Raises UserError if a folder is named twice.
    """
    whole = [str(path) if "://" in str(path) else os.path.abspath(path) for path in run_dirs]
    if twice := [name for name in whole if whole.count(name) > 1]:
        raise UserError(f"{twice[0]}: named twice; name each run once")
    parts = [name.split("/") for name in whole]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def draw_runs(runs: Mapping[str, Run]) -> str:
    """A column for each run: its experiment, its last step, and when and where it ran."""
    titles = ("experiment", "step", "started", "commit", "devices")
    columns = [["<th></th>", *(f"<th>{title}</th>" for title in titles)]]
    for name, run in runs.items():
        last = run.starts[-1] if run.starts else {}
        commit = (last.get("commit") or "-")[:12]
        cells = [
            run.name,
            f"{run.step:,} of {run.experiment.get('train_steps', 0):,}",
            run.starts[0]["date"][:10] if run.starts else "-",
            commit,
            last.get("devices", "-"),
        ]
        head = f'<th class="text">{escape(name)}</th>'
        columns.append([head, *(f'<td class="text">{escape(cell)}</td>' for cell in cells)])
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in zip(*columns, strict=True))
    return f"<table>{rows}</table>"


def draw_differences(runs: Mapping[str, Run]) -> str:
    """A row for each value of the experiments that is not the same in all runs.

    If some runs have a part that others lack, such as an adapter, only its values that are not
    defaults have rows. Of a baseline that others lack, only its name has one. Of an imported model,
    the settings of training mean nothing and are left out.
    """
    values = [
        {s.path: s for s in list_settings(run.experiment) if _uses(run, s.path)}
        for run in runs.values()
    ]
    lines = ""
    for path in dict.fromkeys(path for found in values for path in found):
        settings = [found[path] for found in values if path in found]
        missing = len(settings) < sum(_uses(run, path) for run in runs.values())
        of_baseline = path.startswith("baseline.") and path != "baseline.name"
        if missing and (of_baseline or all(setting.is_default for setting in settings)):
            continue
        if missing or len({setting.value for setting in settings}) > 1:
            cells = [found[path].value if path in found else "-" for found in values]
            row = "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
            lines += f"<tr><th>{escape(path)}</th>{row}</tr>"
    head = "".join(f'<th class="text">{escape(name)}</th>' for name in runs)
    table = f"<table><tr><th></th>{head}</tr>{lines}</table>"
    imported = ", ".join(name for name, run in runs.items() if run.is_imported)
    note = f"Not trained here, and therefore without settings of training: {imported}."
    shown = table if lines else "<p>The runs have the same settings.</p>"
    return shown + (f"<p>{escape(note)}</p>" if imported else "")


def _uses(run: Run, path: str) -> bool:
    """Whether a setting means something for the run: an imported model has not been trained."""
    return not run.is_imported or (path.startswith(OF_MODEL) and path != "model.remat")


def draw_scores(runs: Mapping[str, Run]) -> str:
    """A table of the newest scores of each run. The best value of each score is bold."""
    table = []
    for name, run in runs.items():
        table.append({k: v for row in run.evals for k, v in row.items()} | {"name": name})
        table[-1].pop("step", None)
    names = {name: None for row in table for name in row if name != "name"}
    return draw_table(table, turned=True) + draw_meanings(names) if names else ""


def draw_eval_curves(runs: Mapping[str, Run]) -> list[str]:
    """A figure for each score that some run has at two or more steps."""
    figures = []
    for name in dict.fromkeys(name for run in runs.values() for row in run.evals for name in row):
        curves = _find_curves({key: run.evals for key, run in runs.items()}, name)
        if name != "step" and any(len(steps) > 1 for steps, _ in curves.values()):
            label = make_label(name)
            chart = Chart(label, (), label, smooth=False, meaning=explain(name))
            figures.append(draw_chart(chart, curves, {}))
    return figures


def draw_training_curves(runs: Mapping[str, Run]) -> str:
    """A figure for each scalar of training, with a curve for each run that has it."""
    generative = any(run.is_generative for run in runs.values())
    rows = [row for run in runs.values() for row in run.rows]

    def split(charts: Sequence[Chart]) -> Iterator[Chart]:
        for chart in charts:
            for name in chart.names:
                title = chart.title if len(chart.names) == 1 else make_label(name)
                meaning = explain(name, generative) or chart.meaning
                yield replace(chart, names=(name,), title=title, meaning=meaning)

    def draw(chart: Chart) -> str:
        curves = _find_curves({key: run.rows for key, run in runs.items()}, chart.names[0])
        return draw_chart(chart, curves, {})

    return draw_unless_zero(split(list_charts(rows, generative)), rows, draw)


def _find_curves(rows: Mapping[str, Sequence[Row]], name: str) -> dict[str, Curve]:
    """The curves of one scalar, by the name of the run. Runs without the scalar are left out."""
    curves = {key: find_curve(own, name) for key, own in rows.items()}
    return {key: curve for key, curve in curves.items() if curve[0]}
