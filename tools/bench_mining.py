"""Measures mining: MB/s per core, and how time and memory grow with the input.

    python tools/bench_mining.py --text PATH... --code PATH... [--megabytes 100 1000] [--workers 2]

The input is made from the real text and sources given: copies in which about a third of the
distinct words are replaced, anew in each copy, so that they are no duplicates of each other and
sources still parse. Memory is the resident memory of the command and its workers, added up, at its
highest.
"""

import argparse
import json
import keyword
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench_tables import Table, Value, add_json_option, report

from jaxcpt.errors import run_command
from jaxcpt.mining.documents import Reading, read_part
from jaxcpt.mining.inputs import list_units
from jaxcpt.mining.raw_document import RawDocument

COPY_DOCUMENTS = 200
COLUMNS = ["input", "MB", "workers", "s", "core s", "MB in a core s", "peak MB", "result"]


def vary(texts: list[str], megabytes: float) -> Iterator[str]:
    """Copies of the texts with other words, until there are so many megabytes."""
    tokens = [re.split(r"\b([a-zA-Z_]\w{2,})\b", text) for text in texts]
    kept = {*keyword.kwlist, *keyword.softkwlist, "self", "cls"}
    rng = random.Random(0)
    left = megabytes * 1e6
    for copy in range(10**6):
        for start in range(0, len(tokens), COPY_DOCUMENTS):
            part = tokens[start : start + COPY_DOCUMENTS]
            words = sorted({word for text in part for word in text[1::2]} - kept)
            other = {word: word + rng.choice("aeiou") for word in words if rng.random() < 1 / 3}
            for text in part:
                varied = "".join([other.get(token, token) for token in text])
                left -= len(varied.encode())
                yield varied
                if left <= 0:
                    return
        print(f"made copy {copy + 1}", file=sys.stderr)


def read_texts(paths: list[str], reading: Reading) -> list[str]:
    units, _, _ = list_units(paths, reading)
    found = (item for unit in units for part in unit for item in read_part(part, reading))
    return [item.text for item in found if isinstance(item, RawDocument)]


def write_inputs(folder: Path, texts: Iterator[str], code: bool) -> int:
    """One JSONL file of documents, or a tree of Python files; returns its bytes."""
    if code:
        for number, text in enumerate(texts):
            path = folder / f"package{number // 1000}" / f"module{number}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    else:
        with open(folder / "documents.jsonl", "w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return sum(path.stat().st_size for path in folder.rglob("*.*"))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants."""
    total = 0
    try:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(resident_bytes(int(child)) for child in children.read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended meanwhile
    return total


def measure(command: list[str]) -> tuple[float, float, int, str]:
    """(seconds, seconds of all cores, peak bytes, last line of its output)"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, resident_bytes(process.pid))
                time.sleep(0.2)

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, busy, peak, output.strip().splitlines()[-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", nargs="*", default=[], metavar="PATH")
    parser.add_argument("--code", nargs="*", default=[], metavar="PATH")
    parser.add_argument("--megabytes", nargs="+", type=float, default=[100, 300, 1000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where to make inputs and outputs; default: temporary")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    rows: list[list[Value]] = []
    for kind, paths in (("text", arguments.text), ("code", arguments.code)):
        reading = Reading(source_suffixes=frozenset([".py"] if kind == "code" else []))
        texts = read_texts(paths, reading) if paths else []
        for megabytes in arguments.megabytes if texts else []:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                made = Path(folder, "input")
                made.mkdir()
                size = write_inputs(made, vary(texts, megabytes), kind == "code") / 1e6
                command = [sys.executable, "-m", "jaxcpt", f"mine-{kind}", "--input", str(made)]
                command += ["--output", f"{folder}/mined", "--workers", str(arguments.workers)]
                seconds, busy, peak, result = measure(command)
            result = result.split(": ")[1].split(";")[0]
            speed = [round(size), arguments.workers, seconds, busy, size / busy]
            rows.append([kind, *speed, round(peak / 1e6), result])
    table = Table(name="mining", columns=COLUMNS, rows=rows, plot=["MB in a core s"])
    report([table], arguments.json)


if __name__ == "__main__":
    run_command(main)
