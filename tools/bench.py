"""Runs the benchmarks and writes their tables into docs/benchmarks.md.

    python tools/bench.py --data DIR [--only NAME...] [--json FILE] [--backends PYTHON] [--small]

Each benchmark is a command of its own, and all of them run one after another. Its tables stand
between the markers of their names in the page, under a line with the command, the hardware, the
versions, the date and the commit, and above a figure. DIR has the layout of the evaluation data.
PYTHON is the interpreter of an environment with optimum, for ONNX and OpenVINO. --small takes few
texts and steps, to see that all of it works; it needs --json and leaves the page as it is.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_tables import (
    Table,
    add_json_option,
    describe_machine,
    read_tables,
    render,
    rewrite,
    write_tables,
)
from plots import draw_table

from jaxcpt.errors import UserError, run_command
from jaxcpt.files import write_file
from jaxcpt.mining.python_packages import mine_packages
from jaxcpt.pairs import write_pairs
from jaxcpt.provenance import find_commit

TOOLS = Path(__file__).resolve().parent
PAGE = TOOLS.parent / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Benchmark:
    tool: str
    """The NAME of tools/bench_NAME.py."""
    words: str
    """The words after the tool. `{data}`, `{pairs}` and `{python}` are filled in."""
    small: str
    """The further words of --small."""


QUICKSTART_STEP = "--experiment experiments/quickstart.py --set batching.token_dropout=0.0"
SMALL_TRAINING = "--pairs 8 --rounds 1"
BENCHMARKS = {
    "train": Benchmark(
        "train",
        "--pairs-file {pairs} --only gpt2 minilm --rounds 2",
        f"{SMALL_TRAINING} --only minilm",
    ),
    "past_memory": Benchmark(
        "train",
        "--pairs-file {pairs} --only past_memory --rounds 1 --warm 0 --engines grouped_bfloat16",
        f"{SMALL_TRAINING} --chunks 2",
    ),
    "minilm": Benchmark("minilm", "--data {data} --backends {python}", "--texts 8 --rounds 1"),
    "embed": Benchmark(
        "embed", "--data {data} --texts 200", "--texts 8 --repeats 1 --corpora 2000"
    ),
    "input": Benchmark("input", "--pairs {pairs}", "--pairs-per-batch 64 --steps 2"),
    "search": Benchmark("search", "", "--rows 40000 --width 32 --repeats 1"),
    "loss": Benchmark("loss", "", "--pairs 512 --repeats 1"),
    "chunks": Benchmark("chunks", "", "--pairs 4 --repeats 1"),
    "mining": Benchmark("mining", "--text {data}/prose --megabytes 30", "--megabytes 1"),
    "step": Benchmark("step", QUICKSTART_STEP, "--set batching.pairs_per_batch=16 --steps 2"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backends", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--pairs-file", type=Path, help="default: mined as in the quickstart")
    parser.add_argument("--small", action="store_true")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    if arguments.small and arguments.json is None:
        raise UserError("--small: its numbers are no benchmarks; name a file with --json")
    tables: list[Table] = []
    commit = find_commit(TOOLS.parent)  # before the page is changed
    with tempfile.TemporaryDirectory() as name:
        pairs = arguments.pairs_file or Path(name) / "pairs.jsonl"
        if arguments.pairs_file is None and {"train", "past_memory", "input"} & set(arguments.only):
            write_pairs(pairs, mine_packages((), 1000, seed=0)[0])
        filled = {"data": arguments.data, "pairs": pairs, "python": arguments.backends}
        for benchmark in arguments.only:
            found = run_benchmark(benchmark, filled, arguments.small, Path(name) / "tables.json")
            tables += found
            if not arguments.small:  # at once: a later benchmark may fail
                update_page(PAGE, found, describe_run(benchmark, commit))
    if arguments.json is not None:
        write_tables(tables, arguments.json)


def run_benchmark(name: str, filled: dict[str, object], small: bool, file: Path) -> list[Table]:
    benchmark = BENCHMARKS[name]
    words = f"{benchmark.words} {benchmark.small if small else ''}".format(**filled).split()
    tool = str(TOOLS / f"bench_{benchmark.tool}.py")
    command = [sys.executable, tool, *words, "--json", str(file)]
    print(f"\n== {name}", flush=True)
    if subprocess.run(command, cwd=TOOLS.parent).returncode:
        raise UserError(f"{name}: the benchmark failed; its own words are above")
    return read_tables(file)


def describe_run(name: str, commit: str | None) -> str:
    benchmark = BENCHMARKS[name]
    words = benchmark.words.format(data="DATA", pairs="FILE", python="PYTHON")
    today = datetime.date.today().isoformat()
    return (
        f"`python tools/bench_{benchmark.tool}.py {words}`".replace(" `", "`")
        + f" on {today}, commit {commit}, {describe_machine()}."
    )


def update_page(page: Path, tables: Sequence[Table], origin: str) -> None:
    """Puts each table, its figure and where it is from between the markers of its name."""
    text = page.read_text()
    for table in tables:
        content = f"{origin}\n\n{render(table)}"
        if table.plot:
            figure = page.with_suffix("") / f"{table.name}.svg"
            draw_table(table, figure)
            shown = " and ".join(table.plot)
            content += f"\n\n![{shown}]({page.stem}/{figure.name})"
        text = rewrite(text, table.name, content)
    write_file(page, text)


if __name__ == "__main__":
    run_command(main)
