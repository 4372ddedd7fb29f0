"""Writes the report of a run, which is one HTML page.

In: the files of a run folder. These are `experiment.json`, `metrics.jsonl` and `evals.jsonl`;
`starts.jsonl`, which old versions did not write; `summary.json`, once the run is finished; and
`suites.json`, once the run is scored on the paper's suites. Missing files are left out, so a killed
run has a report too.
Out: `report.html`, or a page that compares several runs. A page loads no other file and runs no
script. The same files give the same bytes. The package knows no model and no device.

    python -m jaxcpt.report runs/quickstart
    python -m jaxcpt.report runs/first runs/second --output comparison.html
"""

from jaxcpt.report.command import main
from jaxcpt.report.compare import write_comparison
from jaxcpt.report.page import write_report

__all__ = ["main", "write_comparison", "write_report"]
