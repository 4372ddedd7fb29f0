"""Shows and records tables of the suites' scores: on the terminal, in suites.json, in the report.

In: the lines of `evals.table`, of one model or of several. Out: tables on the terminal, and files
in a run folder, unless a training run holds its lock. The module computes no score.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcpt.errors import UserError
from jaxcpt.evals.suites import SUITES
from jaxcpt.evals.table import Line
from jaxcpt.files import write_file
from jaxcpt.metrics import record_evals
from jaxcpt.report import write_report
from jaxcpt.report.inputs import SUITES as SUITES_SHAPE
from jaxcpt.report.inputs import read_object
from jaxcpt.run_lock import RunLock
from jaxcpt.terminal import print_table


def show_suites(tables: dict[str, list[Line]]) -> None:
    """Prints a table for each suite, followed by notes on scores that cannot be compared."""
    for suite, lines in tables.items():
        started = any(line.before is not None for line in lines)
        rows = [
            [
                line.name + ("*" if line.caveat else ""),
                show_score(line.score),
                *[show_score(line.before)] * started,
                show_score(line.words),
                line.published,
            ]
            for line in lines
        ]
        before = ["before training"] * started
        headings = ("", "this run", *before, SUITES[suite].words_label, "published")
        print_table(suite, rows, headings)
        print_caveats(suite, lines)


def show_side_by_side(suite: str, lines_of: Mapping[str, Sequence[Line]]) -> None:
    """Prints a table of a suite with a column for each model, followed by notes on its scores."""
    by_name: dict[str, dict[str, Line]] = {}
    for model, lines in lines_of.items():
        for line in lines:
            by_name.setdefault(line.name, {})[model] = line
    first = {name: next(iter(of_models.values())) for name, of_models in by_name.items()}
    rows = [
        [
            name + ("*" if first[name].caveat else ""),
            *[show_score(row[model].score if model in row else None) for model in lines_of],
            show_score(first[name].words),
            first[name].published,
        ]
        for name, row in by_name.items()
    ]
    print_table(suite, rows, ("", *lines_of, SUITES[suite].words_label, "published"))
    print_caveats(suite, list(first.values()))


def print_caveats(suite: str, lines: Sequence[Line]) -> None:
    """Prints what the scores of a suite mean, and which of them cannot be compared."""
    if SUITES[suite].note:
        print(f"  {SUITES[suite].note}")
    for caveat in dict.fromkeys(line.caveat for line in lines if line.caveat):
        names = ", ".join(line.name for line in lines if line.caveat == caveat)
        print(f"  * {names}: {caveat}; not to be compared with published figures")


def show_score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def record_tables(run_dir: Path, step: int, tables: dict[str, list[Line]]) -> None:
    """Adds the lines of the tables to suites.json and writes the report again.

    Existing lines of other suites, or of sets in another data folder, stay if they are of the same
    step. Lines of another step are removed.
    """
    path = run_dir / "suites.json"
    recorded = _read_tables(path)
    suites = recorded["suites"] if recorded.get("step") == step else {}
    for suite, lines in tables.items():
        by_name = {line["name"]: line for line in suites.get(suite, [])}
        by_name |= {line.name: line._asdict() for line in lines}
        suites[suite] = list(by_name.values())
    write_file(path, json.dumps({"step": step, "suites": suites}, indent=1))
    write_report(run_dir)


def _read_tables(path: Path) -> dict[str, Any]:
    """The content of suites.json. For a damaged file, prints a line and returns an empty dict."""
    try:
        return read_object(path, SUITES_SHAPE) or {}
    except UserError:
        print(f"{path}: does not parse; writing a new one, without the suites that it held")
        return {}


def record(
    run_dir: Path,
    step: int,
    scores: dict[str, float],
    tables: dict[str, list[Line]] | None = None,
) -> None:
    """Records scores in the run folder. If that is impossible, prints a line that says why.

    It is impossible in a folder that cannot be written, and in one where a run trains: both would
    write evals.jsonl, and one would remove the rows of the other.
    """
    try:
        with RunLock(run_dir):
            record_evals(run_dir, step, scores)
            if tables is None:
                write_report(run_dir)
            else:
                record_tables(run_dir, step, tables)
    except (UserError, OSError) as refusal:  # hours of scoring must not be lost
        print(f"these scores are shown and not recorded; evaluate again for that: {refusal}")
