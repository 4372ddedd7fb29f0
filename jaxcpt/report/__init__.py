"""The report of a run: a run folder in, one HTML page out.

In: `experiment.json`, `metrics.jsonl` and `evals.jsonl`; `summary.json`, which a finished run has;
`suites.json`, which a run has once it is scored on the paper's suites.
Out: `report.html`. The page loads nothing and runs nothing, and the same files give the same bytes.
It knows no model and no device. It shows what the folder has, so a killed run has a report too.

    python -m jaxcpt.report --run-dir runs/quickstart
"""

from jaxcpt.report.page import main, write_report

__all__ = ["main", "write_report"]
