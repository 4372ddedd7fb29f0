"""The command `jaxcpt report`: writes the page of one run, or a page that compares several runs."""

from collections.abc import Sequence
from pathlib import Path

from jaxcpt.errors import CommandParser, UserError
from jaxcpt.files import to_path
from jaxcpt.report.compare import write_comparison
from jaxcpt.report.page import write_report


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt report",
        description="Write the HTML page of a run, or one page that compares several runs.",
    )
    parser.add_argument("runs", nargs="*", type=to_path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--run-dir", nargs="+", action="extend", type=to_path, default=[], help="the same as RUN"
    )
    parser.add_argument(
        "--output",
        type=to_path,
        help="file to write; default: RUN/report.html, for several runs ./comparison.html",
    )
    arguments = parser.parse_args(argv)
    runs = [*arguments.runs, *arguments.run_dir]
    if not runs:
        raise UserError("name the folder of a run: jaxcpt report RUN")
    if len(runs) == 1:
        print(write_report(runs[0], arguments.output))
    else:
        print(write_comparison(runs, arguments.output or Path("comparison.html")))
