"""The report of a run: a run folder in, one HTML page out.

In: `experiment.json`, `metrics.jsonl` and `evals.jsonl`; `starts.jsonl`, which runs of older
versions lack; `summary.json`, which a finished run has; `suites.json`, which a run has once it is
scored on the paper's suites.
Out: `report.html`, or a page that compares several runs. A page loads nothing and runs nothing, and
the same files give the same bytes. It knows no model and no device. It shows what the folder has,
so a killed run has a report too.

    python -m jaxcpt.report runs/quickstart
    python -m jaxcpt.report runs/first runs/second --output comparison.html
"""

from jaxcpt.report.command import main
from jaxcpt.report.compare import write_comparison
from jaxcpt.report.page import write_report

__all__ = ["main", "write_comparison", "write_report"]
