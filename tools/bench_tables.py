"""Tables of measurements: printed, kept as JSON, and put into a page of Markdown.

In: `Table`s, which benchmarks make. Out: Markdown between the markers of a page, so that nobody
copies numbers by hand. The module does not know what was measured.
"""

import argparse
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.files import write_file

Value = str | float | int | None
MIB = 2**20
LIBRARIES = ("jax", "torch", "sentence-transformers", "transformers", "faiss-cpu")


@dataclass(frozen=True, kw_only=True)
class Table:
    """What one benchmark found; `name` is that of its markers. None is an empty field."""

    name: str
    columns: list[str]
    rows: list[list[Value]]
    note: str = ""
    plot: list[str] = field(default_factory=list)
    """The columns that the table's figure shows, which have one unit. Empty: no figure."""

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.name}: {len(self.columns)} columns, but a row is {wrong[0]}")
        if missing := set(self.plot) - set(self.columns):
            raise ValueError(f"{self.name}: no column {missing} for its figure")


def format_value(value: Value) -> str:
    """Integers with commas; other numbers with three digits that count."""
    match value:
        case None:
            return ""
        case str():
            return value
        case int():
            return f"{value:,}"
    digits = next((n for n, least in enumerate((99.95, 9.995, 0.9995)) if abs(value) >= least), 3)
    return f"{value:,.{digits}f}"


def render(table: Table) -> str:
    """The table and its note in Markdown. Columns of numbers stand to the right."""
    numeric = [
        any(isinstance(row[at], int | float) for row in table.rows)
        for at in range(len(table.columns))
    ]
    lines = [table.columns, ["---:" if right else "---" for right in numeric]]
    lines += [[format_value(value) for value in row] for row in table.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{table.note}" if table.note else text


def rewrite(page: str, name: str, content: str) -> str:
    """The page with `content` between the markers of `name`. Raises UserError without markers."""
    start, end = f"<!-- table:{name} -->", f"<!-- end:{name} -->"
    pattern = re.compile(f"({re.escape(start)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise UserError(f"the page needs one line {start} and, below it, one line {end}")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", page)


def describe_machine() -> str:
    """The processor, the cores that this process may use, and the versions of the libraries."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    kinds = [kind for kind in ("avx512f", "avx512_bf16", "amx_bf16") if f" {kind} " in cpuinfo]
    cores = len(os.sched_getaffinity(0))
    libraries = [f"{name} {found}" for name in LIBRARIES if (found := _find_version(name))]
    processor = model[1].strip() if model else platform.machine()
    return (
        f"{cores} cores of {processor} ({', '.join(kinds)}), Python {platform.python_version()}, "
        f"{', '.join(libraries)}"
    )


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables here")


def report(tables: Sequence[Table], json_file: Path | None) -> None:
    """Prints the tables; with a file, writes them there too."""
    for table in tables:
        print(f"\n{table.name}\n\n{render(table)}")
    if json_file is not None:
        write_tables(tables, json_file)


def write_tables(tables: Sequence[Table], file: Path) -> None:
    write_file(file, json.dumps([asdict(table) for table in tables], indent=1))


def read_tables(file: Path) -> list[Table]:
    return [Table(**values) for values in json.loads(file.read_text())]
